"""What a source of hosts hands over, and how slot counts are settled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable

from dsmoe.common.errors import HostProblem
from dsmoe.hosts.host import Candidate, Host, few


def _nothing() -> None:
    return None


@dataclass
class Found:
    """The candidates of one source, the head first.

    ``device`` is "gpu" where the source counts GPUs, "cpu" where there are none, "unstated" for
    hosts given by hand. ``recheck`` raises HostGone if a host has died since; ``close`` ends the
    connection to the source.
    """

    source: str
    reason: str
    candidates: list[Candidate]
    device: str = "gpu"
    warnings: list[str] = field(default_factory=list)
    no_slots_hint: str = "write NAME:N for it, or give --slots N"
    recheck: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing


def settle(found: Found, slots: int | None, allow_mixed: bool) -> list[Host]:
    """The hosts with their final slot counts; ``slots`` (``--slots``) replaces every count.

    Raises HostProblem for a host without a count, and for unequal counts unless ``allow_mixed``:
    the benchmark's ``--num_gpus N`` would give every host N processes whatever the file says.
    Adds a warning to ``found`` where ``slots`` is more than the source counts.
    """
    hosts, over = [], []
    for candidate in found.candidates:
        if slots is None and candidate.slots is None:
            raise HostProblem(
                f"{candidate.where}: found no slot count for {candidate.name}; "
                f"{found.no_slots_hint}"
            )
        count = slots if slots is not None else candidate.slots
        assert count is not None
        if candidate.slots is not None and count > candidate.slots and found.device != "cpu":
            over.append(f"{candidate.name} ({candidate.slots})")
        hosts.append(Host(candidate.name, count))
    if over:
        found.warnings.append(f"--slots {slots} is more than the GPUs of {few(over)}")
    least = min(hosts, key=lambda host: host.slots)
    most = max(hosts, key=lambda host: host.slots)
    if least.slots != most.slots and not allow_mixed:
        raise HostProblem(
            f"found unequal slot counts ({most.name} has {most.slots}, {least.name} has "
            f"{least.slots}), expected one count; give --slots {least.slots}, or --allow-mixed"
        )
    return hosts
