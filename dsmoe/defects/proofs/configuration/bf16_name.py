"""Defect 17: the section "bf16" of the configuration."""

NUMBER = 17
TITLE = 'The section "bf16" turns bf16 on'


def observe(tools, phase):
    import torch

    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}
    engine = tools.start(model, config, optimizer)[0]
    return str(next(engine.module.parameters()).dtype)


def judge(seen):
    found = seen[0][0]
    return ("fixed" if found == "torch.bfloat16" else "lives"), found, "torch.bfloat16"
