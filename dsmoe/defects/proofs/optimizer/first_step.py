"""Defect 7: an optimizer step that only allocates the state, and is counted."""

NUMBER = 7
TITLE = "ZeRO does not step the optimizer before the first step of training"


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = model.weight.item()
    engine = tools.start(model, {"zero_optimization": {"stage": 2}}, optimizer)[0]
    tools.step(engine, engine(torch.ones(1, 1, device=engine.device)).sum())
    return (before - engine.module.weight.item()) / 0.01


def judge(seen):
    moved = seen[0][0]
    state = "fixed" if abs(moved - 1) < 1e-2 else "lives"
    return state, f"Adam's first step is {moved:.3f} lr", "1.000 lr"
