"""Defect 51, part: the model saved in 16 bit, with experts on several processes."""

NUMBER = 51
TITLE = "save_16bit_model writes the experts of all processes"
PHASES = (2,)


def observe(tools, phase):
    import torch

    class Net(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)[0]

    layer = tools.experts(
        4, torch.nn.Linear(4, 4), 2, parallel=2, k=1, capacity_factor=2.0, min_capacity=0
    )
    model = Net(layer)
    tools.fill(model)
    optimizer = torch.optim.SGD(tools.groups(model), lr=1.0)
    engine = tools.start(model, {"zero_optimization": {"stage": 2}}, optimizer)[0]
    save = getattr(engine, "save_16bit_model", None) or engine.save_fp16_model
    try:
        save(tools.folder, "model.bin")
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:150]
    torch.distributed.barrier()
    names = torch.load(f"{tools.folder}/model.bin")
    return len({name for name in names if "deepspeed_experts" in name})


def judge(seen):
    found = seen[0][0]
    state = "fixed" if found == 4 else "lives"
    return state, f"{found} tensors of experts", "4: weight and bias of two experts"
