"""Defect 5: ZeRO-1 with experts."""

NUMBER = 5
TITLE = "ZeRO-1 trains a model with experts"
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
    optimizer = torch.optim.SGD(tools.groups(model), lr=1.0)
    data = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(tools.rank))
    try:
        engine = tools.start(model, {"zero_optimization": {"stage": 1}}, optimizer)[0]
        tools.step(engine, engine(data.to(engine.device)).pow(2).mean())
    except Exception as error:
        # torch or gloo refuses what the release does, or has no GPU: nothing to do with experts
        reasons = ("modified inplace", "initialize CUDA", "no support for")
        if any(reason in str(error) for reason in reasons):
            raise
        return f"{type(error).__name__}: {error}"[:150]
    return "trained"


def judge(seen):
    found = seen[0][0]
    return ("fixed" if found == "trained" else "lives"), found, "a step of training"
