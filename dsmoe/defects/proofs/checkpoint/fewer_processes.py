"""Defect 50: a checkpoint of ZeRO at another number of processes."""

NUMBER = 50
TITLE = "A checkpoint of ZeRO loads at another number of processes"
PHASES = (2, 1)


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    engine = tools.start(model, {"zero_optimization": {"stage": 2}}, optimizer)[0]
    x = torch.tensor([[1.0, 2.0, 3.0]], device=engine.device)
    if phase == 0:
        tools.step(engine, engine(x).sum())
        engine.save_checkpoint(tools.folder, tag="one")
        return None
    try:
        engine.load_checkpoint(tools.folder, tag="one")
        before = tools.values(engine.module.weight)
        tools.step(engine, engine(x).sum())
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    after = tools.values(engine.module.weight)
    return [round((a - b) / 0.1, 4) for a, b in zip(before, after)]


def judge(seen):
    found = seen[1][0]
    right = [1.9, 3.8, 5.7]
    if isinstance(found, str):
        return "lives", f"2 processes to 1: {found}", f"the next step is {right} lr"
    state = "fixed" if all(abs(a - b) < 1e-3 for a, b in zip(found, right)) else "lives"
    return state, f"the next step is {found} lr", f"{right} lr (momentum 0.9)"
