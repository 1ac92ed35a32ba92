"""Defect 53, part: the optimizer "Adagrad" of the configuration."""

NUMBER = 53
TITLE = '"Adagrad" in the configuration is Adagrad'


def observe(tools, phase):
    import traceback

    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    config = {"optimizer": {"type": "Adagrad", "params": {"lr": 0.1}}}
    try:
        engine = tools.start(model, config)[0]
    except Exception as error:
        if any(
            "fused_adam" in frame.filename for frame in traceback.extract_tb(error.__traceback__)
        ):
            return ["FusedAdam", None]  # which has to be compiled by CUDA
        raise
    before = model.weight.item()
    for _ in range(2):
        tools.step(engine, engine(torch.ones(1, 1, device=engine.device)).sum())
    inner = getattr(engine, "basic_optimizer", engine.optimizer)
    return [type(inner).__name__, before - engine.module.weight.item()]


def judge(seen):
    name, moved = seen[0][0]
    right = 0.1 + 0.1 / 2**0.5
    if moved is None:
        return "lives", f"{name}, which cannot be compiled here", f"Adagrad, {right:.4f}"
    state = "fixed" if abs(moved - right) < 1e-3 else "lives"
    text = f"{name}; two steps with the gradient 1 and lr 0.1 move the weight by {moved:.4f}"
    return state, text, f"{right:.4f}"
