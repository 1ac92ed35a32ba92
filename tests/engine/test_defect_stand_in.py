"""The stand-in for CUDA, which changes torch: in a Python of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dsmoe.defects.listing import HERE

CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
import stand_in
stand_in.install()
import torch
model = torch.nn.Linear(2, 2).cuda().to("cuda:1")
assert torch.device("cuda", 1).type == "cpu" and torch.device("meta").type == "meta"
assert isinstance(torch.device("cpu"), torch.device) and not isinstance("cuda", torch.device)
assert torch.zeros(2, device="cuda:0").device.type == "cpu"
assert torch.tensor([1.0], device=torch.cuda.current_device()).to(0).sum().item() == 1
assert torch.zeros(2).type() == "torch.cuda.FloatTensor" == model.weight.type()
assert torch.zeros(2).type("torch.cuda.DoubleTensor").dtype is torch.float64
assert torch.cuda.FloatTensor([3.0]).new_zeros(1, device="cuda").item() == 0
with torch.cuda.stream(torch.cuda.Stream()):
    torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
torch.save({"a": torch.ones(1)}, sys.argv[2])
assert torch.load(sys.argv[2], map_location="cuda:0")["a"].item() == 1
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2] + "2", rank=0,
    world_size=1)
half = torch.tensor([1.0, 3.14159]).bfloat16()
kept = half.clone()
torch.distributed.broadcast(half, 0)
assert torch.equal(half, kept) and half.dtype is torch.bfloat16
print("all", torch.cuda.is_available(), torch.cuda.device_count())
"""


@pytest.mark.long
def test_torch_answers_for_cuda_with_its_cpu(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CHECK, str(HERE), str(tmp_path / "file")],
        capture_output=True,
        text=True,
    )
    assert run.stdout == "all True 2\n", run.stderr
