"""Pipelines that a case may have, for ``--pipeline auto``."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Sequence

from dsmoe.benchmark.cases.case import PIPELINE_SCHEDULES, Case, Parallel
from dsmoe.common.errors import UsageError
from dsmoe.common.overlay_modules import load

#: Takes the cases that can be and the processes of a host, and picks one of them.
Fastest = Callable[[Sequence[Case], int], Case]


def refuse_auto(cases: Sequence[Case], devices: int) -> Case:
    """The choice of who has no rates to compare with. Raises UsageError where it matters."""
    if len(cases) > 1:
        raise UsageError("--pipeline auto is not known here; expected a number of stages")
    return cases[0]


def pipeline_of(case: Case, asked: Any) -> int:
    """The stages that are ``asked`` for (None: the case's own)."""
    return case.parallel.pipeline_parallel_size if asked is None else int(asked)


def ahead_of_next(schedule: str) -> int:
    """Forward passes that a stage is ahead of the next one."""
    return int(load("deepspeed/moe/pipeline/schedule.py").AHEAD[schedule])


def in_flight(stages: int, stage: int, schedule: str, micro_batches: int) -> int:
    """Micro-batches whose activations ``stage`` (from 0) of ``stages`` holds, at most."""
    return min(ahead_of_next(schedule) * (stages - 1 - stage) + 1, micro_batches)


def schedule_of(parallel: Parallel, stages: int, asked: str | None) -> str:
    """The schedule of ``stages`` that is ``asked`` for. None: the case's own; eager, which hides
    messages, where the case has no pipeline. Raises UsageError for one without stages."""
    if asked and stages == 1:
        raise UsageError(
            f"--pipeline-schedule {asked} without a pipeline; expected --pipeline 2 or more with "
            "it, or no schedule"
        )
    own = parallel.pipeline_schedule if parallel.pipeline_parallel_size > 1 else "eager"
    return asked or (own if stages > 1 else "1f1b")


def with_every_pipeline(
    case: Case, changes: Any, devices: int, changed: Callable[[Case, Any, int], Case]
) -> list[Case]:
    """``case`` with ``changes`` and each number of stages that can be, fewest first.

    Each with both schedules, the case's micro-batch and halves of it, unless the changes name one.
    ``changed(case, changes, devices)`` makes one (choice.py). Raises UsageError where none can be.
    """
    processes, layers = case.parallel.processes, case.model.num_layers
    found: list[Case] = []
    refused: UsageError | None = None
    for stages in (n for n in range(1, min(processes, layers) + 1) if processes % n == 0):
        for schedule in PIPELINE_SCHEDULES[::-1] if stages > 1 else (None,):
            if changes.pipeline_schedule not in (None, schedule):
                continue
            wanted = dataclasses.replace(
                changes, pipeline_parallel_size=stages, pipeline_schedule=schedule
            )
            try:
                made = changed(case, wanted, devices)
                found.append(made)
                size = made.micro_batch_size
                while size % 2 == 0 and changes.micro_batches is changes.micro_batch_size is None:
                    size //= 2
                    smaller = dataclasses.replace(wanted, micro_batch_size=size)
                    found.append(changed(case, smaller, devices))
            except UsageError as error:
                refused = refused or error
    if not found:
        assert refused is not None
        raise refused
    return found
