"""One gradient for the two copies of the tied embedding, in the first and the last stage.

Each process sends the other end of its column its share of the stage's summed gradient, so that
the gradient crosses once, however many processes a stage has. Both add the same two numbers: the
copies stay equal bit for bit.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .stage_groups import StageGroups


def add_other_copy(gradient: Tensor, groups: StageGroups, partitioned: bool) -> None:
    """Add the other end's gradient to ``gradient``, the stage's sum in fp32.

    ``partitioned``: each process of the stage has another part of it (ZeRO); otherwise all have the
    whole, exchange a part each, and gather the results inside the stage.
    """
    if partitioned or groups.width == 1:
        dist.all_reduce(gradient, group=groups.ends)
        return
    size = -(-gradient.numel() // groups.width)
    padded = torch.zeros(size * groups.width, dtype=gradient.dtype, device=gradient.device)
    padded[: gradient.numel()].copy_(gradient)
    parts = list(padded.split(size))
    own = parts[groups.column].clone()
    dist.all_reduce(own, group=groups.ends)
    dist.all_gather(parts, own, group=groups.data)
    gradient.copy_(padded[: gradient.numel()])
