"""Defect 1: the scale of expert gradients under expert parallelism."""

NUMBER = 1
TITLE = "An expert's gradient does not depend on the expert parallel size"
PHASES = (1, 2)


def observe(tools, phase):
    import torch

    class Net(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)[0]

    expert = torch.nn.Linear(4, 4)
    layer = tools.experts(
        4, expert, 2, parallel=tools.world, k=1, capacity_factor=2.0, min_capacity=0
    )
    model = Net(layer)
    tools.fill(model, 2 // tools.world)
    optimizer = torch.optim.SGD(tools.groups(model), lr=1.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    data = torch.randn(16, 4, generator=torch.Generator().manual_seed(5))
    mine = data.chunk(tools.world)[tools.rank]
    engine = tools.start(model, {"zero_optimization": {"stage": 2}}, optimizer)[0]
    tools.step(engine, engine(mine[None].to(engine.device)).pow(2).mean())
    moved = {
        n: float((p.detach().cpu().float() - before[n].float()).norm())
        for n, p in engine.module.named_parameters()
    }
    return [v for n, v in sorted(moved.items()) if "experts." in n and "weight" in n]


def judge(seen):
    one = seen[0][0]
    two = [value for rank in seen[1] for value in rank]
    if len(one) != len(two) or min(one) == 0:
        raise RuntimeError(f"the experts do not correspond: {one} and {two}")
    ratios = [b / a for a, b in zip(one, two)]
    state = "fixed" if all(abs(ratio - 1) < 1e-3 for ratio in ratios) else "lives"
    text = ", ".join(f"{ratio:.4f}" for ratio in ratios)
    return state, f"update of the experts, 2 processes against 1: {text} times", "1.0000 times"
