"""Defect 13: the initial weights of the experts of one process."""

NUMBER = 13
TITLE = "Experts start with different weights"


def observe(tools, phase):
    import torch

    layer = tools.experts(4, torch.nn.Linear(4, 4), 3, k=1)
    named = layer.named_parameters()
    weights = [p.detach() for n, p in named if "experts" in n and n.endswith("weight")]
    return [float((a - b).abs().max()) for a, b in zip(weights, weights[1:])]


def judge(seen):
    found = seen[0][0]
    text = ", ".join(f"{v:.4f}" for v in found)
    state = "fixed" if found and min(found) > 0 else "lives"
    return state, f"largest differences of neighbours: {text}", "more than 0"
