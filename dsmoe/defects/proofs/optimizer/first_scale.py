"""Defect 38, part: the first loss scale, where the configuration names none."""

NUMBER = 38
TITLE = "fp16 starts at one loss scale with ZeRO and without"


def observe(tools, phase):
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4))

    found = []
    for stage in (0, 1):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        config = {"fp16": {"enabled": True}, "zero_optimization": {"stage": stage}}
        inner = tools.start(model, config, optimizer)[0].optimizer
        found.append(float(getattr(inner, "loss_scale", 0) or inner.cur_scale))
    return found


def judge(seen):
    without, within = seen[0][0]
    text = f"{without:g} without ZeRO, {within:g} with ZeRO-1"
    return ("fixed" if without == within else "lives"), text, "one scale"
