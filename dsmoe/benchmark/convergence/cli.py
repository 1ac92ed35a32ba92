"""The command: every arm in a process of its own, then the table and the figure."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from dsmoe.benchmark import checkout, environment, launch
from dsmoe.benchmark.cluster import lay_out
from dsmoe.benchmark.convergence import plot, records, table, text
from dsmoe.benchmark.convergence.arms import (
    ARMS,
    Arm,
    Setting,
    active_parameters,
    case_of,
    check_equal_flops,
    config_of,
    flops_per_token,
)
from dsmoe.benchmark.convergence.options import parser, setting
from dsmoe.benchmark.errors import DataError, ResultsError
from dsmoe.benchmark.figure import pyplot
from dsmoe.benchmark.interrupts import Interrupted, StopSignals
from dsmoe.benchmark.launch import Job
from dsmoe.benchmark.machine import this_machine
from dsmoe.benchmark.options import RUN_FAILED
from dsmoe.benchmark.progress import Progress
from dsmoe.benchmark.run_case import limits
from dsmoe.benchmark.run_folder import (
    CASE,
    DEEPSPEED,
    ITERATIONS,
    OUTCOME,
    IterationLog,
    make_run_folder,
    read_json,
    write_json,
)
from dsmoe.benchmark.suites import Case
from dsmoe.errors import DsmoeError, UsageError
from dsmoe.places import work_folder

WORKER = Path(__file__).with_name("worker.py")


def run(options: argparse.Namespace, stop: StopSignals) -> int:
    if options.plot_only:
        if options.no_plot:
            raise UsageError("--plot-only and --no-plot: give one of them")
        return show(options.output, draw=True)
    if not options.no_plot:
        pyplot()  # said now, not when all is trained
    machine = this_machine()
    sizes = setting(options, machine.device)
    arms = [ARMS[name] for name in dict.fromkeys(options.arms)]
    seeds = list(dict.fromkeys(options.seeds))
    models = [case_of(arm, sizes, seeds[0]).model for arm in arms]
    apart = check_equal_flops(models)
    environment.quick(options.output)
    place = checkout.location()
    step(f"DeepSpeed checkout {place}")
    checkout.ensure(place)
    trees = checkout.trees(place)
    step(f"text: {', '.join(options.data) or 'the Python standard library'}")
    paths = [str(Path(p).expanduser().absolute()) for p in options.data]
    content = text.prepare(work_folder() / "data", paths, options.text_bytes)
    print("\n".join(table.text_lines(content.info)))
    check_size(content.info, sizes)
    per_token = ", ".join(f"{m.name} {flops_per_token(m) / 1e6:.2f}" for m in models)
    step(f"MFLOP per token: {per_token} ({100 * apart:.2f} % apart)")
    common = {
        "setting": sizes.to_dict(),
        "text": content.info.content,
        "device": machine.device,
        "result_tree": trees.result,
    }
    summary = records.open_summary(options.output, common)
    summary["text"] = vars(content.info)
    code = 0
    for seed in seeds:
        for arm in arms:
            name = records.run_name(arm.name, seed)
            case = case_of(arm, sizes, seed)
            config = config_of(arm, case, machine.device)
            identity = {"case": case.to_dict(), "config": config}
            if options.resume and records.finished(options.output, summary, name, identity):
                step(f"finished already, skipped: {name}")
                continue
            step(f"training {name} ({arm.words}): {sizes.steps} steps of {case.tokens_per_step:,}")
            spec = {
                "case": case.to_dict(),
                "cache": str(work_folder() / "data"),
                "text": content.options(),
                "limits": vars(limits(options.time_out)),
                "convergence": {
                    key: getattr(sizes, key)
                    for key in ("eval_every", "eval_windows", "learning_rate", "rate_warmup")
                },
            }
            run_dir, reason, interrupted = train(options, trees.path, name, spec, config, stop)
            result = {
                "arm": arm.name,
                "seed": seed,
                "status": records.FAILED if reason else records.OK,
                "reason": reason,
                "identity": identity,
                "device": machine.hardware,
                "versions": {**machine.versions, "deepspeed": trees.deepspeed},
                "run_folder": str(run_dir.relative_to(options.output)),
            }
            if reason is None:
                result.update(figures(arm, case, run_dir))
            else:
                print(f"error: {name} failed: {reason}", file=sys.stderr)
                code = RUN_FAILED
            with stop.held():
                records.store(options.output, summary, name, result)
            if interrupted:
                raise interrupted
    show(options.output, draw=not options.no_plot)
    return code


def train(
    options: argparse.Namespace,
    place: Path,
    name: str,
    spec: dict[str, Any],
    config: dict[str, Any],
    stop: StopSignals,
) -> tuple[Path, str | None, Interrupted | None]:
    """Run one arm to its end: its folder, why it failed, and the interrupt that ended it."""
    try:
        run_dir = make_run_folder(options.output, name)
        write_json(run_dir / CASE, spec)
        write_json(run_dir / DEEPSPEED, config)
    except OSError as error:
        raise ResultsError(f"{options.output}: cannot be written: {error.strerror}") from error
    case = spec["case"]
    tokens = case["global_batch"] * case["model"]["sequence"]
    job = Job(place, run_dir.absolute(), lay_out(None, 1), launch.free_port(), script=WORKER)
    with Progress(case["iterations"], tokens) as progress:

        def seen(line: dict[str, Any]) -> None:
            if line["iteration"]:  # the first evaluation is before any step
                progress.iteration(line)

        try:
            outcome = launch.run(job, limits(options.time_out), seen, stop)
        except Interrupted as error:
            return run_dir, str(error), error
    reason = outcome.reason
    if reason is None and not (run_dir / OUTCOME).is_file():
        reason = f"the launcher reported success, but {run_dir / OUTCOME} is missing"
    return run_dir, reason, None


def figures(arm: Arm, case: Case, run_dir: Path) -> dict[str, Any]:
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
        # of the pieces between evaluations; the first holds the kernels' first use
        "tokens_per_second": statistics.median(speeds),
        "held_out_windows": points[-1]["held_out_windows"],
        "first_held_out_loss": points[0]["held_out_loss"],
        "held_out_loss": points[-1]["held_out_loss"],
        "best_held_out_loss": min(point["held_out_loss"] for point in points),
        "train_loss": points[-1]["cross_entropy"],
        **outcome,
    }


def check_size(info: text.TextInfo, sizes: Setting) -> None:
    """Raises DataError where the held-out text is too short for an evaluation."""
    windows = (info.held_out_tokens - 1) // sizes.sequence
    if windows < sizes.micro_batch:
        raise DataError(
            f"the held-out text makes {windows} sequences of {sizes.sequence}, expected at least "
            f"a micro-batch of {sizes.micro_batch}: name more text with --data, or a smaller "
            "--micro-batch"
        )


def show(output: Path, draw: bool) -> int:
    """Print the table of ``output`` and draw its figure, from its files alone."""
    summary = records.read_summary(output)
    curves = records.read_curves(output, summary)
    print()
    table.print_table(summary, curves)
    if draw:
        if not curves:
            raise ResultsError(f"{output}: no arm has finished; there is nothing to draw")
        for path in plot.draw(summary, curves, output / "convergence"):
            print(f"wrote {path}")
    return 0


def step(words: str) -> None:
    print(f"== {words}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; expected failures are one line on standard error."""
    try:
        options = parser().parse_args(arguments)
        with StopSignals() as stop:
            return run(options, stop)
    except Interrupted as error:
        print(f"\n{error}: all processes of the run were ended", file=sys.stderr)
        return error.exit_code
    except DsmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
