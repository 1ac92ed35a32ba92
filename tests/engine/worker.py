"""One process of ranks.run_ranks: join the group, call the function, save what it returns."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import deepspeed  # noqa: F401  (it must be imported before the process group exists)
import scenarios
import torch
import torch.distributed as dist

folder, function = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])
dist.init_process_group(
    "nccl" if torch.cuda.is_available() else "gloo",
    init_method=f"file://{folder / 'store'}",
    rank=rank,
    world_size=int(os.environ["WORLD_SIZE"]),
)
result = getattr(scenarios, function)(*torch.load(folder / "in"))
torch.save(result, folder / f"out{rank}")
dist.barrier()
sys.stdout.flush()
os._exit(0)  # gloo's threads can abort an orderly exit; see dsmoe/benchmark/pretrain.py
