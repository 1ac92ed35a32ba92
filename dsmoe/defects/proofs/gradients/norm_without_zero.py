"""Defect 36, part: the norm of fp32 without ZeRO."""

NUMBER = 36
TITLE = "get_global_grad_norm() is a number in fp32 without ZeRO"


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = tools.start(model, {"gradient_clipping": 1.0}, optimizer)[0]
    if not hasattr(engine, "get_global_grad_norm"):
        raise tools.NotApplicable("the engine has no get_global_grad_norm")
    tools.step(engine, engine(torch.tensor([[3.0, 4.0]], device=engine.device)).sum())
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def judge(seen):
    norm = seen[0][0]
    state = "fixed" if norm is not None and abs(norm - 5) < 1e-4 else "lives"
    return state, f"{norm}", "5.0, the norm of the gradient (3, 4)"
