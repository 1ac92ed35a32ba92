"""Defect 28: the step at which a dynamic loss scale grows."""

NUMBER = 28
TITLE = "A growing loss scale does not shrink the step"


def observe(tools, phase):
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4))

        def forward(self, x):  # products by element: an old torch multiplies no fp16 matrices
            return self.weight * x

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    config = {
        "fp16": {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 1},
        "zero_optimization": {"stage": 1},
    }
    engine = tools.start(model, config, optimizer)[0]
    weights = [0.0]
    for _ in range(4):
        x = torch.ones(4, dtype=torch.float16, device=engine.device)
        tools.step(engine, engine(x).float().sum())
        weights.append(tools.values(engine.module.weight)[0])
    return [before - after for before, after in zip(weights, weights[1:])]


def judge(seen):
    moved = [round(step, 4) for step in seen[0][0]]
    state = "fixed" if moved == [0.5] * 4 else "lives"
    return state, f"four steps of {moved}", "four of 0.5, as the gradient is 1 and the rate 0.5"
