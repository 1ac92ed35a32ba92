"""Defect 29: the parameter groups in a checkpoint of ZeRO."""

NUMBER = 29
TITLE = "A checkpoint of ZeRO restores the learning rate"
PHASES = (1, 1)


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine = tools.start(model, {"zero_optimization": {"stage": 2}}, optimizer)[0]
    if phase == 0:
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.125
        tools.step(engine, engine(torch.ones(1, 1, device=engine.device)).sum())
        engine.save_checkpoint(tools.folder, tag="one")
    else:
        engine.load_checkpoint(tools.folder, tag="one")
        before = engine.module.weight.item()
        tools.step(engine, engine(torch.ones(1, 1, device=engine.device)).sum())
        return before - engine.module.weight.item()


def judge(seen):
    rate = seen[1][0]
    state = "fixed" if abs(rate - 0.125) < 1e-5 else "lives"
    return state, f"the resumed step uses the rate {rate:.3f}", "0.125, as saved"
