"""Defect 3: the gate's weight under ZeRO in 16 bit."""

NUMBER = 3
TITLE = "The gate is trained in 16 bit under ZeRO"


def observe(tools, phase):
    import torch

    class Net(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            out, loss, _ = self.layer(x)
            return out.float().pow(2).mean() + loss

    layer = tools.experts(4, torch.nn.Linear(4, 4), 2, k=1, capacity_factor=2.0, min_capacity=0)
    model = Net(layer)
    tools.fill(model)
    optimizer = torch.optim.SGD(tools.groups(model), lr=1.0)
    section = {"enabled": True}
    config = {"bf16": section, "zero_optimization": {"stage": 2}}
    if deepspeed_before_bf16():
        config["bfloat16"] = config.pop("bf16")
    engine = tools.start(model, config, optimizer)[0]
    gate = [p for n, p in engine.module.named_parameters() if n.endswith("gate.wg.weight")]
    before = gate[0].detach().float().clone()
    data = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(5))
    for _ in range(2):
        tools.step(engine, engine(data.to(engine.device, torch.bfloat16)))
    gate = [p for n, p in engine.module.named_parameters() if n.endswith("gate.wg.weight")]
    return float((gate[0].detach().float() - before).abs().max())


def deepspeed_before_bf16():
    import deepspeed

    return tuple(map(int, deepspeed.__version__.split(".")[:2])) < (0, 6)


def judge(seen):
    moved = seen[0][0]
    state = "fixed" if moved > 1e-3 else "lives"
    return state, f"two steps move the gate's weight by at most {moved:.5f}", "more than 0.001"
