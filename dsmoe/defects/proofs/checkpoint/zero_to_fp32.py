"""Defect 51, part: the script beside a checkpoint, for a model with experts."""

NUMBER = 51
TITLE = "zero_to_fp32.py writes every weight of a model with experts"
PHASES = (2,)
TORCH_DEFAULTS = True


def observe(tools, phase):
    import subprocess
    import sys
    from pathlib import Path

    import torch

    class Net(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)[0]

    layer = tools.experts(
        4, torch.nn.Linear(4, 4), 2, parallel=2, k=1, capacity_factor=2.0, min_capacity=0
    )
    model = Net(layer)
    tools.fill(model)
    optimizer = torch.optim.SGD(tools.groups(model), lr=1.0)
    engine = tools.start(model, {"zero_optimization": {"stage": 2}}, optimizer)[0]
    data = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(tools.rank))
    tools.step(engine, engine(data.to(engine.device)).pow(2).mean())
    engine.save_checkpoint(tools.folder, tag="one")
    torch.distributed.barrier()
    if tools.rank:
        return None
    script = Path(tools.folder, "zero_to_fp32.py")
    out = Path(tools.folder, "whole")
    run = subprocess.run(
        [sys.executable, str(script), tools.folder, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if run.returncode:
        return run.stdout.strip().splitlines()[-1][:200]
    files = [out] if out.is_file() else sorted(out.glob("*.bin"))
    names = [name for file in files for name in torch.load(str(file), weights_only=False)]
    return len([name for name in names if "deepspeed_experts" in name])


def judge(seen):
    found = seen[0][0]
    right = "4 tensors of two experts"
    if isinstance(found, str):
        return "lives", f"the script ends with {found}", right
    return ("fixed" if found == 4 else "lives"), f"{found} tensors of experts", right
