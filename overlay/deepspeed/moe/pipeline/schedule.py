"""One forward, one backward in turn (1F1B): what a stage does in a step, as data.

Stage s of P begins with A (P - 1 - s) forward passes, then takes a forward and a backward pass in
turn, and ends with the backward passes that are left. So it holds the activations of at most
A (P - 1 - s) + 1 micro-batches, however many there are.

A is 1 in "1f1b": the fewest activations, but a stage waits for each message's whole way there and
back. It is 2 in "eager", where a message has the time of another micro-batch to arrive (the eager
1F1B of Alpa's work on resharding, arXiv 2211.05322).
"""

from __future__ import annotations

from typing import NamedTuple

FORWARD, BACKWARD = "forward", "backward"
AHEAD = {"1f1b": 1, "eager": 2}
"""Forward passes that a stage is ahead of the next one, by the name of the schedule."""


class Pass(NamedTuple):
    """The forward or backward pass of one micro-batch, numbered from 0."""

    kind: str
    micro_batch: int


def one_forward_one_backward(
    stages: int, stage: int, micro_batches: int, schedule: str = "1f1b"
) -> list[Pass]:
    """The passes of ``stage``, in order.

    Raises ValueError for a stage that is none, no micro-batch, or an unknown schedule.
    """
    if schedule not in AHEAD:
        raise ValueError(f"schedule {schedule!r}; expected one of {', '.join(AHEAD)}")
    if not 0 <= stage < stages or micro_batches < 1:
        raise ValueError(
            f"stage {stage} of {stages} with {micro_batches} micro-batches; expected a stage from 0"
            " and at least one micro-batch"
        )
    ahead = min(AHEAD[schedule] * (stages - 1 - stage), micro_batches)
    passes = [Pass(FORWARD, m) for m in range(ahead)]
    for m in range(micro_batches - ahead):
        passes += [Pass(FORWARD, m + ahead), Pass(BACKWARD, m)]
    return passes + [Pass(BACKWARD, m) for m in range(micro_batches - ahead, micro_batches)]


def most_held(passes: list[Pass]) -> int:
    """Micro-batches whose activations a stage holds at the same time, at most."""
    held = most = 0
    for one in passes:
        held += 1 if one.kind == FORWARD else -1
        most = max(most, held)
    return most
