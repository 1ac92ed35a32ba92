"""Defect 34: the learning rate of step 1 under a schedule."""

NUMBER = 34
TITLE = "The first step has the schedule's first rate, not the optimizer's"


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = {
        "type": "WarmupLR",
        "params": {
            "warmup_min_lr": 0.01,
            "warmup_max_lr": 0.1,
            "warmup_num_steps": 10,
            "warmup_type": "linear",
        },
    }
    try:
        engine = tools.start(model, {"scheduler": schedule}, optimizer)[0]
    except TypeError:  # the oldest releases know no warmup_type
        schedule["params"].pop("warmup_type")
        engine = tools.start(model, {"scheduler": schedule}, optimizer)[0]
    before = model.weight.item()
    tools.step(engine, engine(torch.ones(1, 1, device=engine.device)).sum())
    return before - engine.module.weight.item()


def judge(seen):
    rate = seen[0][0]
    state = "fixed" if 0.005 < rate < 0.1 else "lives"
    return state, f"the first step used the rate {rate:.3f}", "0.010 (the optimizer's own is 0.5)"
