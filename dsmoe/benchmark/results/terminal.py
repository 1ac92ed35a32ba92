"""The table at the end of a run: coloured in a terminal, plain ASCII anywhere else."""

from __future__ import annotations

import sys
from typing import TextIO

from dsmoe.benchmark.results.record import RunRecord

GIB = 1 << 30


def report_lines(record: RunRecord) -> list[tuple[str, str]]:
    """(what, figure with its unit) for each line of the table, in ASCII."""
    case = record.case
    model = case.get("model", {}).get("name", record.model_name)
    suite = case.get("suite", "?")
    name = model if model == suite else f"{suite} {model}"
    devices = record.num_hosts * record.num_devices_per_host
    lines = [
        ("case", f"{name} on {devices} x {record.instance}"),
        ("parameters", f"{record.parameter_count:,}"),
    ]
    if record.status == "failed":
        return [*lines, ("failed", record.reason or "")]
    lines += [
        ("tokens/s", f"{record.tokens_per_second or 0:,.0f}"),
        (
            "seconds per iteration",
            f"{record.median_seconds or 0:.4g} median of {len(record.step_seconds)}, "
            f"spread {100 * (record.spread or 0):.1f} %",
        ),
    ]
    if record.predicted:
        lines.append(("predicted seconds", against_predicted(record)))
    lines += [
        (f"TFLOPS per device ({name})", f"{figure:.4g}") for name, figure in record.tflops.items()
    ]
    if record.energy_joules and record.joules_per_token:
        watts = record.energy_joules / sum(record.step_seconds) / devices
        lines.append(("energy", f"{record.joules_per_token:.3g} J a token, {watts:.0f} W a device"))
    if record.losses:
        lines += [("first loss", _loss(record.losses[0])), ("last loss", _loss(record.losses[-1]))]
    if record.held_out_loss is not None:
        lines.append(("held-out loss", _loss(record.held_out_loss)))
    dropped = [share for share in record.dropped_share if share is not None]
    if dropped:
        lines.append(("choices dropped", f"{100 * sum(dropped) / len(dropped):.1f} % at the end"))
    if record.evaluation_error is not None:
        lines.append(("evaluation failed", record.evaluation_error))
    if record.skipped_steps:
        lines.append(("skipped steps", str(record.skipped_steps)))
    if record.peak_memory_bytes is not None:
        lines.append(("peak memory", f"{record.peak_memory_bytes / GIB:.2f} GiB a device"))
    if record.kernels:
        words = ", ".join(f"{what} {name}" for what, name in record.kernels.items())
        lines.append(("kernels", words))
    return lines


def against_predicted(record: RunRecord) -> str:
    """The predicted seconds of an iteration, by which rates, and how far they are off."""
    seconds, measured = record.predicted["seconds"], record.median_seconds
    words = f"{seconds:.4g} at the rates of {record.predicted.get('cluster', '?')}"
    if not measured:
        return words
    return f"{words}, {100 * (seconds / measured - 1):+.1f} % against the median"


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def print_report(record: RunRecord, file: TextIO | None = None) -> None:
    """Prints the table to ``file`` (standard output): with rich in a terminal, else plain."""
    out = sys.stdout if file is None else file
    lines = report_lines(record)
    if out.isatty() and _print_rich(lines, out, record.status == "failed"):
        return
    width = max(len(what) for what, _ in lines)
    for what, figure in lines:
        text = f"{what:<{width}}  {figure}"
        print(text.encode("ascii", "replace").decode("ascii"), file=out)


def _print_rich(lines: list[tuple[str, str]], out: TextIO, bad: bool) -> bool:
    """True when rich is installed and has printed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(show_header=False, border_style="red" if bad else "green")
    for what, figure in lines:
        table.add_row(what, Text(figure))  # Text: a reason in brackets is not markup
    Console(file=out).print(table)
    return True
