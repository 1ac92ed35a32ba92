"""Defect 33, part: the fp32 weights after load_module_state_dict."""

NUMBER = 33
TITLE = "After load_module_state_dict the first step keeps the weights loaded"


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(5.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine = tools.start(model, {"zero_optimization": {"stage": 1}}, optimizer)[0]
    weights = {"weight": torch.ones(1, 1)}
    try:
        engine.load_module_state_dict(weights)
    except KeyError:  # later releases take a checkpoint that has the weights under "module"
        engine.load_module_state_dict({"module": weights})
    loaded = engine.module.weight.item()
    tools.step(engine, engine(torch.ones(1, 1, device=engine.device)).sum())
    return [loaded, engine.module.weight.item()]


def judge(seen):
    loaded, after = seen[0][0]
    state = "fixed" if abs(loaded - 1) < 1e-6 and abs(after - 0.5) < 1e-6 else "lives"
    return state, f"weight {loaded:g} after loading, {after:g} after a step", "1, then 0.5"
