"""The settings of a call as one table of at most 80 columns."""

from __future__ import annotations

from typing import Sequence, TextIO

from dsmoe.benchmark.link.measure import MeasuredLink

WIDTH = 80


def print_table(found: Sequence[MeasuredLink], out: TextIO) -> None:
    """A row a setting: seconds of an iteration, and what each host sends and receives in it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, width=WIDTH)
    table.add_column("setting", overflow="fold")
    for name in ("s", "n", "spread", "sent, MB", "recvd, MB", "last loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        table.add_row(row.setting.name.replace("--", ""), *_cells(row))
    Console(file=out, width=WIDTH).print(table)
    for row in found:
        if row.reason:
            print(f"{row.setting.name}: {row.reason}", file=out)


def _cells(row: MeasuredLink) -> list[str]:
    record = row.record
    if record is None or record.median_seconds is None or record.spread is None:
        return ["failed", *[""] * 5]
    last = record.losses[-1]
    return [
        f"{record.median_seconds:.4g}",
        str(len(record.step_seconds)),
        f"{record.spread:.0%}",
        megabytes(row.bytes_of("sent")),
        megabytes(row.bytes_of("received")),
        "" if last is None else f"{last:.4f}",
    ]


def megabytes(by_host: Sequence[int]) -> str:
    """Millions of bytes of one host; the least and the most where hosts differ by over 1 %."""
    if not by_host:
        return ""
    least, most = min(by_host), max(by_host)
    words = [f"{count / 1e6:.2f}" for count in ((least, most) if most > 1.01 * least else (most,))]
    return "-".join(words)
