"""What of which parameter a process holds in its flat partitions, by places in the whole model.

A piece is named by its parameter and the first of its elements in the whole parameter, with all
experts, so that it does not depend on stages, experts or partitions.
"""

from __future__ import annotations

from typing import Any, Iterator, NamedTuple

import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from deepspeed.utils import groups
from torch import Tensor


class Piece(NamedTuple):
    """Elements ``start`` to ``start + length`` - 1 of parameter ``name``, flat; the first of them
    is element ``place`` of the partition of group ``group``."""

    group: int
    name: str
    start: int
    length: int
    place: int


class Whole(NamedTuple):
    """A parameter here, and its share of the whole one."""

    name: str
    param: Tensor
    copies: int
    """Processes with another share of it: the expert parallel size, or 1."""
    rank: int
    """Which share is here."""

    @property
    def shape(self) -> list[int]:
        """Of the whole parameter: experts are its first dimension."""
        return [self.param.shape[0] * self.copies, *self.param.shape[1:]]

    @property
    def start(self) -> int:
        return self.rank * self.param.numel()


def wholes(engine: Any, i: int) -> list[Whole]:
    """The parameters of group ``i`` in their flat order."""
    found = []
    for param in engine.optimizer.flat_order(i):
        size = groups.get_expert_parallel_world_size() if is_moe_param(param) else 1
        rank = groups.get_expert_parallel_rank() if size > 1 else 0
        found.append(Whole(engine.param_names[param], param, size, rank))
    return found


def pieces(engine: Any) -> Iterator[Piece]:
    """All pieces in this process's partitions, in order."""
    optimizer = engine.optimizer
    for i, partition in enumerate(optimizer.single_partition_of_fp32_groups):
        size = partition.numel()
        first = size * dist.get_rank(group=optimizer.real_dp_process_group[i])
        at = 0
        for whole in wholes(engine, i):
            low, high = max(at, first), min(at + whole.param.numel(), first + size)
            if low < high:
                start = whole.start + low - at
                yield Piece(i, whole.name, start, high - low, low - first)
            at += whole.param.numel()


def copy_into(target: Tensor, piece: Piece, start: int, values: Tensor) -> int:
    """Copy to ``target``, the piece's own elements, what ``values`` from ``start`` on have of them;
    how many these are."""
    low = max(piece.start, start)
    high = min(piece.start + piece.length, start + values.numel())
    if low >= high:
        return 0
    target[low - piece.start : high - piece.start].copy_(values[low - start : high - start])
    return high - low
