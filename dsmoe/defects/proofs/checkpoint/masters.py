"""Defect 33: the fp32 weights after load_checkpoint without optimizer states."""

NUMBER = 33
TITLE = "Without optimizer states the fp32 weights are those of the checkpoint"
PHASES = (1, 1)


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0 if phase == 0 else 5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine = tools.start(model, {"zero_optimization": {"stage": 1}}, optimizer)[0]
    x = torch.ones(1, 1, device=engine.device)
    if phase == 0:
        engine.save_checkpoint(tools.folder, tag="one")
        return None
    engine.load_checkpoint(tools.folder, tag="one", load_optimizer_states=False)
    loaded = engine.module.weight.item()
    tools.step(engine, engine(x).sum())
    return [loaded, engine.module.weight.item()]


def judge(seen):
    loaded, after = seen[1][0]
    state = "fixed" if abs(loaded - 1) < 1e-6 and abs(after - 0.5) < 1e-6 else "lives"
    return state, f"weight {loaded:g} after loading, {after:g} after a step", "1, then 0.5"
