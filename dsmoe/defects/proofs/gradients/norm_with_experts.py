"""Defect 8: clipping without ZeRO, where processes hold different experts."""

NUMBER = 8
TITLE = "Clipping without ZeRO uses the norm over all experts"
PHASES = (2,)


def observe(tools, phase):
    import torch

    class Net(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer
            self.dense = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.dense(x))[0]

    layer = tools.experts(
        4, torch.nn.Linear(4, 4), 2, parallel=2, k=1, capacity_factor=2.0, min_capacity=0
    )
    model = Net(layer)
    tools.fill(model)
    optimizer = torch.optim.SGD(tools.groups(model), lr=1.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    data = torch.randn(8, 4, generator=torch.Generator().manual_seed(tools.rank))
    engine = tools.start(model, {"gradient_clipping": 0.01}, optimizer)[0]
    tools.step(engine, engine(data[None].to(engine.device)).pow(2).sum())
    dense = experts = 0.0
    for name, parameter in engine.module.named_parameters():
        square = float((parameter.detach().cpu() - before[name]).double().pow(2).sum())
        if "experts." in name:
            experts += square
        else:
            dense += square
    return [dense, experts]


def judge(seen):
    first, second = seen[0]
    norm = (first[0] + first[1] + second[1]) ** 0.5
    state = "fixed" if abs(norm - 0.01) < 1e-4 else "lives"
    return state, f"the clipped update has the norm {norm:.5f}", "0.01000, as configured"
