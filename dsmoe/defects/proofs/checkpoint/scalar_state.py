"""Defect 6: an optimizer state of dimension 0 in a checkpoint of ZeRO."""

NUMBER = 6
TITLE = "ZeRO saves an optimizer state of dimension 0 and loads it"
PHASES = (1, 1)


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    engine = tools.start(model, {"zero_optimization": {"stage": 2}}, optimizer)[0]
    try:
        if phase == 0:
            for _ in range(3):
                tools.step(engine, engine(torch.ones(1, 1, device=engine.device)).sum())
            engine.save_checkpoint(tools.folder, tag="one")
            inner = optimizer.state
        else:
            engine.load_checkpoint(tools.folder, tag="one")
            inner = optimizer.state
        steps = [float(state["step"]) for state in inner.values() if "step" in state]
        return steps
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:120]


def judge(seen):
    saved, loaded = seen[0][0], seen[1][0]
    if isinstance(saved, str):
        return "lives", f"saving: {saved}", "a checkpoint"
    if isinstance(loaded, str):
        if loaded.startswith("IndexError"):
            return "lives", f"loading: {loaded}", f"step is {saved}"
        raise RuntimeError(f"loading fails for another reason: {loaded}")
    state = "fixed" if saved == loaded and saved else "lives"
    return state, f"step is {saved} at saving and {loaded} after loading", "the same"
