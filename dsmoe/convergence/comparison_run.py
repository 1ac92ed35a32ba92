"""The comparison: every arm in a process of its own, then the table and the figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsmoe.benchmark.preflight import local_checks
from dsmoe.benchmark.preflight.machine import Machine
from dsmoe.benchmark.results.figure import pyplot
from dsmoe.benchmark.run import patched_deepspeed
from dsmoe.benchmark.run.every_case import FINISHED, RUN_FAILED, step
from dsmoe.common.errors import DataError, ResultsError
from dsmoe.common.interrupts import StopSignals
from dsmoe.common.places import checkout_folder, work_folder
from dsmoe.convergence import curve_files, plot, table, text
from dsmoe.convergence.arm_run import Todo, run_one
from dsmoe.convergence.arms import (
    Arm,
    ArmSetting,
    case_of,
    check_equal_flops,
    config_of,
    flops_per_token,
)


@dataclass(frozen=True)
class Comparison:
    """What is asked for: ``arms`` with each of ``seeds``, at the sizes of ``setting``.

    ``data``: absolute paths of text, of which ``text_bytes`` are taken at most, of lines of JSON
    their ``text_field``. ``time_out`` in seconds without a new evaluation.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    setting: ArmSetting
    machine: Machine
    data: tuple[str, ...]
    text_bytes: int
    text_field: str
    output: Path
    time_out: float
    resume: bool = False
    draw: bool = True


def run_all(wanted: Comparison, stop: StopSignals) -> int:
    """Train every arm, then show; RUN_FAILED if one failed. Raises DsmoeError."""
    if wanted.draw:
        pyplot()  # said now, not when all is trained
    sizes, machine, output = wanted.setting, wanted.machine, wanted.output
    models = [case_of(arm, sizes, wanted.seeds[0]).model for arm in wanted.arms]
    apart = check_equal_flops(models)
    local_checks.quick(output)
    checkout = checkout_folder()
    step(f"DeepSpeed checkout {checkout}")
    patched_deepspeed.ensure(checkout)
    trees = patched_deepspeed.trees(checkout)
    step(f"text: {', '.join(wanted.data) or 'the Python standard library'}")
    content = text.prepare(
        work_folder() / "data", list(wanted.data), wanted.text_bytes, wanted.text_field
    )
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
    summary = curve_files.open_summary(output, common)
    summary["text"] = vars(content.info)
    code = FINISHED
    for seed in wanted.seeds:
        for arm in wanted.arms:
            case = case_of(arm, sizes, seed)
            todo = Todo(arm, case, config_of(arm, case, machine.device), sizes, content)
            if wanted.resume and curve_files.finished(output, summary, todo.name, todo.identity()):
                step(f"finished already, skipped: {todo.name}")
            elif not run_one(todo, machine, trees, output, wanted.time_out, summary, stop):
                code = RUN_FAILED
    show(output, draw=wanted.draw)
    return code


def check_size(info: text.TextInfo, sizes: ArmSetting) -> None:
    """Raises DataError where the held-out text is too short for an evaluation."""
    windows = (info.held_out_tokens - 1) // sizes.sequence_length
    if windows < sizes.micro_batch_size:
        raise DataError(
            f"the held-out text makes {windows} sequences of {sizes.sequence_length}, expected at "
            f"least a micro-batch of {sizes.micro_batch_size}: name more text with --data, or a "
            "smaller --micro-batch-size"
        )


def show(output: Path, draw: bool) -> int:
    """Print the table of ``output`` and draw its figure, from its files alone."""
    summary = curve_files.read_summary(output)
    curves = curve_files.read_curves(output, summary)
    print()
    with curve_files.shown(output):
        table.print_table(summary, curves)
        if draw:
            if not curves:
                raise ResultsError(
                    f"{output}: no arm has finished; there is nothing to draw: train with --resume"
                )
            for path in plot.draw(summary, curves, output / "convergence"):
                print(f"wrote {path}")
    return 0
