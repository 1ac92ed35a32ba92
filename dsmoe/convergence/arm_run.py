"""One run of the comparison: started through the launcher, watched, and put into the summary."""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.preflight.machine import Machine
from dsmoe.benchmark.run import launch, patched_deepspeed
from dsmoe.benchmark.run.folder import (
    CASE,
    DEEPSPEED,
    ITERATIONS,
    OUTCOME,
    IterationLog,
    make_run_folder,
    read_json,
    write_json,
)
from dsmoe.benchmark.run.layout import lay_out
from dsmoe.benchmark.run.progress import Progress
from dsmoe.benchmark.run.request import limits
from dsmoe.common.errors import ResultsError
from dsmoe.common.interrupts import Interrupted, StopSignals
from dsmoe.common.places import work_folder
from dsmoe.convergence import records, text
from dsmoe.convergence.arms import Arm, Setting, active_parameters, flops_per_token

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Todo:
    """One run: an arm with a seed."""

    arm: Arm
    case: Case
    config: dict[str, Any]
    sizes: Setting
    content: text.Text

    @property
    def name(self) -> str:
        return records.run_name(self.arm.name, self.case.seed)

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same, beside what all runs of a comparison share."""
        return {"case": self.case.to_dict(), "config": self.config}

    def spec(self, time_out: float) -> dict[str, Any]:
        """What the training process reads."""
        plan = ("eval_every", "eval_windows", "learning_rate", "rate_warmup")
        return {
            "case": self.case.to_dict(),
            "cache": str(work_folder() / "data"),
            "text": self.content.options(),
            "limits": vars(limits(time_out)),
            "convergence": {key: getattr(self.sizes, key) for key in plan},
        }


def run_one(
    todo: Todo,
    machine: Machine,
    trees: patched_deepspeed.Trees,
    output: Path,
    time_out: float,
    summary: dict[str, Any],
    stop: StopSignals,
) -> bool:
    """Train one arm and store how it ended; whether it finished. Raises Interrupted."""
    steps = f"{todo.sizes.steps} steps of {todo.case.tokens_per_step:,} tokens"
    print(f"== training {todo.name} ({todo.arm.words}): {steps}", flush=True)
    run_dir, reason, interrupted = _train(output, time_out, trees.path, todo, machine.gpus, stop)
    result = {
        "arm": todo.arm.name,
        "seed": todo.case.seed,
        "status": records.FAILED if reason else records.OK,
        "reason": reason,
        "identity": todo.identity(),
        "device": machine.hardware,
        "versions": {**machine.versions, "deepspeed": trees.deepspeed},
        "run_folder": str(run_dir.relative_to(output)),
    }
    if reason is None:
        result.update(figures(todo.case, run_dir))
    with stop.held():
        records.store(output, summary, todo.name, result)
    if interrupted:
        raise interrupted
    if reason:
        print(f"error: {todo.name} failed: {reason}", file=sys.stderr)
    return reason is None


def _train(
    output: Path, time_out: float, place: Path, todo: Todo, gpus: int, stop: StopSignals
) -> tuple[Path, str | None, Interrupted | None]:
    """Run one arm to its end: its folder, why it failed, and the interrupt that ended it."""
    try:
        run_dir = make_run_folder(output, todo.name)
        write_json(run_dir / CASE, todo.spec(time_out))
        write_json(run_dir / DEEPSPEED, todo.config)
    except OSError as error:
        raise ResultsError(f"{output}: cannot be written: {error.strerror}") from error
    job = Job(place, run_dir.absolute(), lay_out(None, 1), script=WORKER, gpus=gpus)
    with Progress(todo.case.iterations, todo.case.tokens_per_step) as progress:

        def seen(line: dict[str, Any]) -> None:
            if line["iteration"]:
                progress.iteration(line)
            else:  # the first evaluation is before any step, and many steps follow without a line
                progress.note(
                    f"held-out loss {line['held_out_loss']:.3f} before training; the next after "
                    f"{todo.sizes.eval_every} steps"
                )

        try:
            outcome = launch.run(job, limits(time_out), seen, progress.note, stop)
        except Interrupted as error:
            return run_dir, str(error), error
    reason = outcome.reason
    if reason is None and not (run_dir / OUTCOME).is_file():
        reason = f"the launcher reported success, but {run_dir / OUTCOME} is missing"
    return run_dir, reason, None


def figures(case: Case, run_dir: Path) -> dict[str, Any]:
    """What the summary says of a finished run."""
    outcome = read_json(run_dir / OUTCOME)
    points = IterationLog(run_dir / ITERATIONS).new_lines()
    speeds = [case.tokens_per_step / point["seconds"] for point in points[1:]]
    count = outcome["parameter_count"]
    return {
        "parameters": count,
        "active_parameters": active_parameters(case.model, count),
        "flops_per_token": flops_per_token(case.model),
        "tokens": points[-1]["tokens"],
        "epochs": case.iterations / outcome["steps_per_epoch"],
        # the median of the pieces between evaluations: the first holds the kernels' first use
        "tokens_per_second": statistics.median(speeds),
        "held_out_windows": points[-1]["held_out_windows"],
        "first_held_out_loss": points[0]["held_out_loss"],
        "held_out_loss": points[-1]["held_out_loss"],
        "best_held_out_loss": min(point["held_out_loss"] for point in points),
        "train_loss": points[-1]["cross_entropy"],
        **outcome,
    }
