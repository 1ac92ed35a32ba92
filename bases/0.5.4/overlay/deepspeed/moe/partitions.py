"""Which of the saved partitions belong to a process's experts (release 0.5.4 took them all)."""

from __future__ import annotations

from typing import Any

from deepspeed.utils import groups


def of_own_experts(zero: Any, i: int, saved: list[Any]) -> list[Any]:
    """The entries of ``saved``, one a saving process, that make up this process's group ``i``.

    Every process holds a partition of the dense groups. A group of experts is split over the
    processes with the same experts only: every ep_size-th, starting with this one's own place.
    """
    if not zero.optimizer.param_groups[i].get("moe", False):
        return saved
    return saved[groups.get_expert_parallel_rank() :: groups.get_expert_parallel_world_size()]
