"""Where the processes that share a layer's experts are: on one host, or across hosts.

Layout ``inside``: an expert parallel group is consecutive processes, on one host where it fits, and
the copies of an expert are on different hosts. Layout ``across``: the copies of an expert are
consecutive processes, and a group's members lie on different hosts.
"""

from __future__ import annotations

from dsmoe.benchmark.cases.case import Parallel
from dsmoe.common.errors import UsageError

AUTO = "auto"
# The hosts of the paper have eight GPUs; a plan knows no others.
HOST_DEVICES = 8


def devices_of_a_host(processes: int) -> int:
    """Processes on each host where the hosts are not known: as many as fill hosts, at most 8."""
    return max(n for n in range(1, HOST_DEVICES + 1) if processes % n == 0)


def auto_size(processes: int, devices: int, experts: int, layout: str = "inside") -> int:
    """The expert parallel size for hosts of ``devices`` processes.

    Inside: the largest that divides the experts and a host's processes. Across: the smallest that
    divides the experts and keeps all copies of an expert on one host. Raises UsageError where
    there is none.
    """
    within = [n for n in range(devices, 0, -1) if devices % n == 0]
    if layout == "inside":
        return next(n for n in within if experts % n == 0)
    for copies in within:
        if experts % (processes // copies) == 0:
            return processes // copies
    raise UsageError(
        f"--expert-layout across: {experts} experts cannot be divided so that their copies on "
        f"{processes} processes stay inside hosts of {devices}; take --expert-layout inside, or "
        "name a size with --expert-parallel"
    )


def stage_width(processes: int, stages: int, devices: int) -> int:
    """Processes of a pipeline stage, where hosts have ``devices`` each.

    A stage is a whole number of hosts, or several fill one. Raises UsageError for other numbers.
    """
    width, rest = divmod(processes, stages)
    if rest:
        raise UsageError(
            f"--pipeline {stages} does not divide {processes} processes; expected a divisor"
        )
    if stages > 1 and width % devices and devices % width:
        raise UsageError(
            f"--pipeline {stages}: stages of {width} processes on hosts of {devices} would begin "
            "inside a host and end in another; expected whole hosts, or stages that fill one"
        )
    return width


def group_of(parallel: Parallel, rank: int) -> list[int]:
    """The processes that share the experts of a layer with process ``rank``, itself included.

    As deepspeed/utils/groups.py and deepspeed/moe/expert_layout.py make the groups.
    """
    size, copies = parallel.expert_parallel_size, parallel.copies
    if parallel.expert_layout == "across":
        return list(range(rank % copies, parallel.processes, copies))
    first = rank - rank % size
    return list(range(first, first + size))


def exchanged_share(parallel: Parallel, devices: int) -> float:
    """The share of a process's tokens for experts that goes to other hosts, the mean of a host.

    Each process sends every member of its group as much.
    """
    total = 0
    for rank in range(devices):
        others = [n for n in group_of(parallel, rank) if n // devices != rank // devices]
        total += len(others)
    return total / (devices * parallel.expert_parallel_size)


def group_hosts(parallel: Parallel, devices: int) -> int:
    """On how many hosts the members of the first process's group are."""
    return len({rank // devices for rank in group_of(parallel, 0)})
