"""Defect 12: min_capacity with two experts a token."""

NUMBER = 12
TITLE = "Top-2 gating honours min_capacity"


def observe(tools, phase):
    import torch

    layer = tools.experts(4, torch.nn.Identity(), 4, k=2, capacity_factor=0.01, min_capacity=8)
    optional = getattr(layer, "set_deepspeed_parallelism", None)
    if optional is not None:
        optional()
    data = torch.ones(1, 8, 4) + 0.1 * torch.arange(4.0)
    try:
        with torch.no_grad():
            out = layer(data)[0]
    except NameError as error:  # two releases use a name that they do not have
        return str(error)
    return int((out[0].abs().sum(-1) > 0).sum())


def judge(seen):
    kept = seen[0][0]
    if isinstance(kept, str):
        return "lives", f"NameError: {kept}", "8 of 8 like tokens, as min_capacity is 8"
    state = "fixed" if kept == 8 else "lives"
    return state, f"{kept} of 8 like tokens pass through the experts", "8, as min_capacity is 8"
