"""Which processes share the experts of a layer, where not consecutive ones: layout ``across``.

With W processes and expert parallel size P every expert has C = W / P copies. DeepSpeed makes
groups of consecutive processes (layout ``inside``, deepspeed/utils/groups.py). Here the C copies of
an expert are consecutive processes, on one host where they fit, and a group is every C-th process,
on several hosts. So the gradients of experts stay inside a host and the tokens go between hosts;
DeepSpeed's pull request 4695 found eight times fewer bytes between hosts for one model.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from deepspeed.utils import groups

INSIDE, ACROSS = "inside", "across"
LAYOUTS = (INSIDE, ACROSS)

# The group that was made here last: another one is in use once groups are made anew.
_own_group: Any = None


def ranks_across(world: int, size: int) -> tuple[list[list[int]], list[list[int]]]:
    """All expert parallel groups, and all groups of processes with the same experts, of ``across``.

    Raises:
        ValueError: where ``size`` does not divide ``world``.
    """
    copies, rest = divmod(world, size)
    if rest:
        raise ValueError(f"expert parallel size {size} does not divide {world} processes")
    share = [list(range(first, world, copies)) for first in range(copies)]
    same = [list(range(first, first + copies)) for first in range(0, world, copies)]
    return share, same


def make_groups(size: int, layout: str, mpu: Any) -> tuple[Any, Any]:
    """This process's expert parallel group and its group of copies; called by all processes.

    Raises:
        ValueError: for another layout, for model parallelism, or a size that does not divide.
    """
    global _own_group
    if layout != ACROSS:
        raise ValueError(f"expert_layout {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if mpu is not None:
        raise ValueError(f"expert_layout {layout!r} with an mpu, expected {INSIDE!r} there")
    world, rank = dist.get_world_size(), dist.get_rank()
    own = []
    for parts in ranks_across(world, min(size, world)):
        made = {tuple(ranks): dist.new_group(ranks) for ranks in parts}
        own.append(next(group for ranks, group in made.items() if rank in ranks))
    _own_group = own[0]
    return own[0], own[1]


def check_checkpoint(engine: Any) -> None:
    """Refuse a checkpoint with ZeRO's state, whose files are found by the order of ``inside``.

    Raises:
        RuntimeError: with layout ``across`` and ZeRO.
    """
    if not (engine.has_moe_layers and engine.zero_optimization_stage()):
        return
    if _own_group is not None and groups.get_expert_parallel_group() is _own_group:
        raise RuntimeError(
            "expert_layout 'across' with ZeRO: its files would be read as those of other experts;"
            f" expected expert_layout {INSIDE!r}, or ZeRO stage 0"
        )
