"""The command: every arm in a process of its own, then the table and the figure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dsmoe.benchmark.cases.chosen import RUN_FAILED
from dsmoe.benchmark.preflight import local
from dsmoe.benchmark.preflight.machine import this_machine
from dsmoe.benchmark.results.figure import pyplot
from dsmoe.benchmark.run import patched_deepspeed
from dsmoe.common.errors import DataError, DsmoeError, ResultsError, UsageError
from dsmoe.common.interrupts import Interrupted, StopSignals
from dsmoe.common.output import needs_no_reader
from dsmoe.common.places import work_folder
from dsmoe.convergence import plot, records, table, text
from dsmoe.convergence.arm_run import Todo, run_one
from dsmoe.convergence.arms import (
    ARMS,
    Setting,
    case_of,
    check_equal_flops,
    config_of,
    flops_per_token,
)
from dsmoe.convergence.options import parser, setting


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
    local.quick(options.output)
    place = patched_deepspeed.location()
    step(f"DeepSpeed checkout {place}")
    patched_deepspeed.ensure(place)
    trees = patched_deepspeed.trees(place)
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
            case = case_of(arm, sizes, seed)
            todo = Todo(arm, case, config_of(arm, case, machine.device), sizes, content)
            if options.resume and records.finished(
                options.output, summary, todo.name, todo.identity()
            ):
                step(f"finished already, skipped: {todo.name}")
            elif not run_one(todo, machine, trees, options.output, options.time_out, summary, stop):
                code = RUN_FAILED
    show(options.output, draw=not options.no_plot)
    return code


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


@needs_no_reader
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
