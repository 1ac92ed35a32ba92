"""Defect 18: load_module_only and ZeRO's state."""

NUMBER = 18
TITLE = "load_module_only loads no optimizer state"
PHASES = (1, 1)


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    engine = tools.start(model, {"zero_optimization": {"stage": 2}}, optimizer)[0]
    x = torch.ones(1, 1, device=engine.device)
    if phase == 0:
        for _ in range(3):
            tools.step(engine, engine(x).sum())
        engine.save_checkpoint(tools.folder, tag="one")
        return engine.module.weight.item()
    engine.load_checkpoint(tools.folder, tag="one", load_module_only=True)
    loaded = engine.module.weight.item()
    tools.step(engine, engine(x).sum())
    return [loaded, (loaded - engine.module.weight.item()) / 0.1]


def judge(seen):
    saved, (loaded, moved) = seen[0][0], seen[1][0]
    right = "the saved weight, and a first step of 1.00 lr (momentum 0)"
    text = f"weight {loaded:.4f} (saved {saved:.4f}), first step {moved:.2f} lr"
    state = "fixed" if abs(saved - loaded) < 1e-6 and abs(moved - 1) < 1e-3 else "lives"
    return state, text, right
