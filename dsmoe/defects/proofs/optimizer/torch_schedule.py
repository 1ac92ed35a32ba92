"""Defect 31: a scheduler of torch that the configuration names."""

NUMBER = 31
TITLE = "A scheduler of torch can be named in the configuration under ZeRO"


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    config = {
        "zero_optimization": {"stage": 1},
        "scheduler": {"type": "StepLR", "params": {"step_size": 1, "gamma": 0.5}},
    }
    try:
        engine = tools.start(model, config, optimizer)[0]
    except TypeError as error:
        return str(error)[:120]
    for _ in range(2):
        tools.step(engine, engine(torch.ones(1, 1, device=engine.device)).sum())
    return float(engine.get_lr()[0])


def judge(seen):
    found = seen[0][0]
    if isinstance(found, str):
        return "lives", f"TypeError: {found}", "rate 0.125 after two steps"
    state = "fixed" if abs(found - 0.125) < 1e-6 else "lives"
    return state, f"rate {found} after two steps", "rate 0.125 after two steps"
