"""A dead stage ends all stages; a hang names the stage and the micro-batch."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from support.benchmark_runs import StartedRun

from dsmoe.benchmark.run.marks import STARTED, WHERE, Mark
from dsmoe.benchmark.run.processes import session_members
from dsmoe.benchmark.run.reasons import hung

END_SECONDS = 30  # only a hang comes near, on busy cores too
# Two stages of one process each, four micro-batches.
PIPED = ("2", "--pipeline", "2", "--micro-batches", "4")
pytestmark = pytest.mark.usefixtures("checkout")


@pytest.mark.slow
def test_a_dead_stage_ends_all(tmp_path: Path) -> None:
    run = StartedRun(tmp_path / "out", *PIPED, changes={"iterations": 10**6})
    run.wait_for_iterations()
    launcher = run.launcher()
    os.kill(run.ranks()[1], signal.SIGKILL)
    said = run.end(END_SECONDS)
    assert session_members(launcher) == []
    assert run.code == 1 and run.failure().startswith("training process 1 "), said


@pytest.mark.long
def test_a_hang_names_the_stage_and_the_micro_batch(tmp_path: Path) -> None:
    run = StartedRun(tmp_path / "out", *PIPED, "--time-out", "5", changes={"iterations": 10**6})
    run.wait_for_iterations()
    os.kill(run.ranks()[1], signal.SIGSTOP)
    said = run.end(5 + END_SECONDS)
    assert run.code == 1, said
    assert "nothing happened for 5 s after iteration" in run.failure()
    assert "process 1 says nothing; process 0 in stage 1 of 2: " in run.failure()
    # where it waits depends on the moment of the stop; mostly inside of a step
    where = "(for the gradient of micro-batch [1-4] of 4 from stage 2|for its last messages)"
    others = "(the step of the optimizer|between two steps)"
    assert re.search(f"(waits {where}|{others})", run.failure()), run.failure()


def test_those_that_say_nothing_come_first_and_those_that_wait_last() -> None:
    marks = [Mark(rank, STARTED, 0) for rank in range(3)]
    assert hung(marks) == ""
    marks += [
        Mark(0, WHERE, 0, "in stage 1 of 3: waits for the gradient of micro-batch 2 of 4"),
        Mark(2, WHERE, 0, "in stage 3 of 3: forward pass of micro-batch 2 of 4"),
    ]
    assert hung(marks) == (
        "; process 1 says nothing; process 2 in stage 3 of 3: forward pass of micro-batch 2 of 4"
        "; process 0 in stage 1 of 3: waits for the gradient of micro-batch 2 of 4"
    )
