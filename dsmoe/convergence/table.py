"""The table at the end, and what is said of the text: rich in a terminal, plain elsewhere."""

from __future__ import annotations

import sys
from typing import Any, Sequence, TextIO

from dsmoe.convergence.arms import ARMS
from dsmoe.convergence.curve_files import OK, Curve
from dsmoe.convergence.text import TextInfo

HEAD = (
    "arm",
    "seed",
    "parameters",
    "active",
    "MFLOP/token",
    "tokens/s",
    "held-out loss",
    "without drops",
    "training loss",
    "max/mean load",
    "dropped",
)
NOTE = (
    "loss in nats a token (byte); without drops: every expert takes all it is offered; load and\n"
    "dropped: training, the last piece between evaluations, worst layer / mean of the layers"
)


def text_lines(info: TextInfo) -> list[str]:
    return [
        f"  {info.train_tokens:,} tokens to train on, {info.held_out_tokens:,} held out: "
        f"{info.held_out_documents} of {info.documents} documents, {info.held_out_entries} whole "
        "top-level entries",
        f"  left out: {info.copies} copies of other files, {info.leaks} held-out documents that "
        f"repeat the training text; {100 * info.shared_lines:.1f} % of the long lines held out "
        "are also trained on",
    ]


def table_rows(summary: dict[str, Any], curves: Sequence[Curve]) -> list[tuple[str, ...]]:
    """A row for each run, failed ones with the reason in place of figures."""
    rows = [_row(curve) for curve in curves]
    for run in summary["runs"].values():
        if run.get("status") != OK:
            rows.append((run["arm"], str(run["seed"]), f"failed: {run.get('reason')}"))
    return rows


def _row(curve: Curve) -> tuple[str, ...]:
    run, last = curve.figures, curve.points[-1]
    if ARMS[curve.arm].dense:
        load = dropped = "-"
    else:
        worst = max(max(layer) * len(layer) for layer in last["expert_load"])
        load = f"{worst:.2f}"
        dropped = f"{100 * sum(last['dropped_share']) / len(last['dropped_share']):.1f} %"
    return (
        curve.arm,
        str(curve.seed),
        f"{run['parameters']:,}",
        f"{run['active_parameters']:,}",
        f"{run['flops_per_token'] / 1e6:.2f}",
        f"{run['tokens_per_second']:,.0f}",
        f"{run['held_out_loss']:.4f}",
        f"{run['held_out_loss_no_drop']:.4f}",
        f"{run['train_loss']:.4f}",
        load,
        dropped,
    )


def print_table(
    summary: dict[str, Any], curves: Sequence[Curve], file: TextIO | None = None
) -> None:
    out = sys.stdout if file is None else file
    rows = table_rows(summary, curves)
    if out.isatty() and _print_rich(rows, out):
        return
    whole = [row for row in rows if len(row) == len(HEAD)]
    widths = [max(len(row[i]) for row in [HEAD, *whole]) for i in range(len(HEAD))]
    for row in [HEAD, *rows]:
        cells = (
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        print("  ".join(cells).rstrip(), file=out)
    print(NOTE, file=out)


def _print_rich(rows: Sequence[tuple[str, ...]], out: TextIO) -> bool:
    """True when rich is installed and has printed."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(caption=NOTE, border_style="green")
    for i, name in enumerate(HEAD):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        # Text: a reason in brackets is not markup
        table.add_row(*map(Text, row), style="" if len(row) == len(HEAD) else "red")
    Console(file=out).print(table)
    return True
