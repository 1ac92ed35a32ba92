"""Defect 32: the settings of the loss scale after a checkpoint was loaded."""

NUMBER = 32
TITLE = "A checkpoint does not bring the loss scale's settings"
PHASES = (1, 1)


def observe(tools, phase):
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4))

        def forward(self, x):  # products by element: an old torch multiplies no fp16 matrices
            return self.weight * x

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    config = {
        "fp16": {"enabled": True, "loss_scale": 64 if phase else 16},
        "zero_optimization": {"stage": 1},
    }
    engine = tools.start(model, config, optimizer)[0]
    if phase:
        engine.load_checkpoint(tools.folder, tag="one")
    x = torch.ones(4, dtype=torch.float16, device=engine.device)
    tools.step(engine, engine(x).float().sum())
    if not phase:
        engine.save_checkpoint(tools.folder, tag="one")
    return float(engine.optimizer.loss_scale)


def judge(seen):
    saved, found = seen[0][0], seen[1][0]
    text = f"loss scale {found:g} after loading a checkpoint of a run with {saved:g}"
    return ("fixed" if found == 64 else "lives"), text, "64, as the configuration says"
