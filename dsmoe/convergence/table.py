"""The tables at the end, and what is said of the text, in at most 80 columns."""

from __future__ import annotations

import sys
import textwrap
from typing import Any, Sequence, TextIO

from dsmoe.common.tables import WIDTH, wrapped
from dsmoe.convergence.arms import ARMS
from dsmoe.convergence.curve_files import OK, Curve
from dsmoe.convergence.text import TextInfo

#: Columns after arm and seed: of what was trained, and of how that went.
SIZES = ("parameters", "active", "MFLOP/token", "tokens/s")
LOSSES = ("held-out\nloss", "without\ndrops", "training\nloss", "max/mean\nload", "dropped")
ARM_WIDTH = 24  # longer names go on in the next line, so that a row has 80 columns
NOTE = (
    "loss in nats a token (byte); without drops: every expert takes all it is\n"
    "offered; load and dropped: training, the last piece between evaluations, worst\n"
    "layer / mean of the layers"
)


def text_lines(info: TextInfo) -> list[str]:
    lines = (
        f"  {info.train_tokens:,} tokens to train on, {info.held_out_tokens:,} held out: "
        f"{info.held_out_documents} of {info.documents} documents, {info.held_out_entries} whole "
        "top-level entries",
        f"  left out: {info.copies} copies of other files, {info.leaks} held-out documents that "
        f"repeat the training text; {100 * info.shared_lines:.1f} % of the long lines held out "
        "are also trained on",
    )
    return [piece for line in lines for piece in wrapped(line)]


def _sizes(curve: Curve) -> tuple[str, ...]:
    run = curve.figures
    return (
        f"{run['parameters']:,}",
        f"{run['active_parameters']:,}",
        f"{run['flops_per_token'] / 1e6:.2f}",
        f"{run['tokens_per_second']:,.0f}",
    )


def _losses(curve: Curve) -> tuple[str, ...]:
    run, last = curve.figures, curve.points[-1]
    if ARMS[curve.arm].dense:
        load = dropped = "-"
    else:
        worst = max(max(layer) * len(layer) for layer in last["expert_load"])
        load = f"{worst:.2f}"
        dropped = f"{100 * sum(last['dropped_share']) / len(last['dropped_share']):.1f} %"
    return (
        f"{run['held_out_loss']:.4f}",
        f"{run['held_out_loss_no_drop']:.4f}",
        f"{run['train_loss']:.4f}",
        load,
        dropped,
    )


def print_table(
    summary: dict[str, Any], curves: Sequence[Curve], file: TextIO | None = None
) -> None:
    """A row for each run in either table; then the failed ones with the reason."""
    from rich.console import Console
    from rich.table import Table

    out = sys.stdout if file is None else file
    for names, cells in ((SIZES, _sizes), (LOSSES, _losses)) if curves else ():
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold green")
        table.add_column("arm", overflow="fold")
        for name in ("seed", *names):
            table.add_column(name, justify="right", no_wrap=True)
        for curve in curves:
            arm = textwrap.fill(curve.arm, ARM_WIDTH)
            table.add_row(arm, str(curve.seed), *cells(curve))
        Console(file=out, width=WIDTH).print(table)
        print(file=out)
    if curves:
        print(NOTE, file=out)
    for run in summary["runs"].values():
        if run.get("status") != OK:
            line = f"{run['arm']}, seed {run['seed']}: failed: {run.get('reason')}"
            print("\n".join(wrapped(line)), file=out)
