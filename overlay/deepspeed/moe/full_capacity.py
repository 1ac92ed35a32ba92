"""Body of top2-honours-arguments.patch: the capacity at which no token is dropped."""

from __future__ import annotations

import torch
import torch.distributed as dist


def full_capacity(mask: torch.Tensor) -> int:
    """Slots an expert needs so that every choice in ``mask`` [S, E] finds one, on any process.

    All processes get the same number, because the all-to-all exchanges equal shares. It waits for
    the device once, as DeepSpeed's own top-1 gating does.
    """
    needed = mask.sum(dim=0).max()
    dist.all_reduce(needed, op=dist.ReduceOp.MAX, group=dist.group.WORLD)
    return int(needed.item())
