"""The process groups of a pipeline: those of a stage, and those between stages.

With W processes and P stages a stage is W / P consecutive processes, so that it is a host, or a
whole number of hosts, where hosts are filled one after the other. *Column* c is the c-th process of
every stage: hidden states and gradients go along a column.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from deepspeed.moe.kernels.policy import kernels
from deepspeed.utils import groups

CONNECTIONS = 4
"""Connections of each way between two hosts, where gloo carries messages."""


@dataclass
class StageGroups:
    """The groups of this process. ``ranks`` are the processes of its column, by stage."""

    stages: int
    stage: int
    column: int
    ranks: list[int]
    data: Any
    """All processes of the stage."""
    expert: Any
    expert_data: Any
    alone: Any
    """This process alone."""
    down: Any
    """The column; hidden states go through it to the next stage, and nothing else."""
    up: Any
    """The column; gradients go through it to the stage before, and nothing else."""
    ends: Any
    """The first and the last process of the column; None in stages between them."""
    tied: Any
    """All processes of the stage, for the tied embedding alone; None in stages between."""
    host_down: list[Any] = field(default_factory=list)
    """The column over gloo, CONNECTIONS times, for messages through the hosts' memory; none where
    NCCL is asked for, and on CPUs."""
    host_up: list[Any] = field(default_factory=list)

    @property
    def first(self) -> bool:
        return self.stage == 0

    @property
    def last(self) -> bool:
        return self.stage == self.stages - 1

    @property
    def width(self) -> int:
        """Processes of a stage."""
        return dist.get_world_size(group=self.data)


def check_sizes(world: int, stages: int, expert_parallel_size: int) -> None:
    """Raises ValueError where so many processes cannot be divided so."""
    if stages < 1 or world % stages:
        raise ValueError(
            f"{stages} pipeline stages do not divide {world} processes; expected a divisor"
        )
    width = world // stages
    if expert_parallel_size < 1 or width % expert_parallel_size:
        raise ValueError(
            f"expert parallel size {expert_parallel_size} does not divide the {width} processes of"
            f" a stage; expected a divisor"
        )


def make_stage_groups(stages: int, expert_parallel_size: int = 1) -> StageGroups:
    """Make the groups of a pipeline, and let ``deepspeed.utils.groups`` know those of the stage.

    Every process calls it, once. Raises ValueError for sizes that do not divide, RuntimeError where
    groups exist already.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    check_sizes(world, stages, expert_parallel_size)
    if groups.is_initialized():
        raise RuntimeError("process groups exist already; expected none before a pipeline's")
    width = world // stages
    of_stage = [list(range(s * width, (s + 1) * width)) for s in range(stages)]
    columns = [list(range(c, world, width)) for c in range(width)]
    size = expert_parallel_size
    share = [r[i : i + size] for r in of_stage for i in range(0, width, size)]
    same = [r[i::size] for r in of_stage for i in range(size)]
    outer = [of_stage[0], of_stage[-1]] if stages > 1 else []
    made: dict[str, Any] = {
        "data": _own(of_stage),
        "expert": _own(share),
        "expert_data": _own(same),
        "alone": _own([[r] for r in range(world)]),
        "down": _own(columns),
        "up": _own(columns),
        "ends": _own([[c[0], c[-1]] for c in columns]) if stages > 1 else None,
        "tied": _own(outer),
    }
    if stages > 1 and dist.get_backend() == "nccl" and kernels().libraries().copy_engines:
        for way in ("host_down", "host_up"):
            made[way] = [_own(columns, "gloo") for _ in range(CONNECTIONS)]
    groups._DATA_PARALLEL_GROUP = made["data"]
    groups._MODEL_PARALLEL_GROUP = made["down"]
    groups._EXPERT_PARALLEL_GROUP = made["expert"]
    groups._EXPERT_DATA_PARALLEL_GROUP = made["expert_data"]
    stage, column = divmod(rank, width)
    return StageGroups(stages, stage, column, columns[column], **made)


def _own(parts: list[list[int]], backend: str | None = None) -> Any:
    """The group of ``parts`` that has this process; all processes make all of them, in order."""
    rank, own = dist.get_rank(), None
    for ranks in parts:
        group = dist.new_group(ranks, backend=backend)
        if rank in ranks:
            own = group
    return own
