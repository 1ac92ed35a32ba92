"""``python -m dsmoe.benchmark.results.plot RESULTS… --output FIG``: the paper's MoE figure, as FIG.png and
FIG.pdf, and its comparison table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dsmoe.common.arguments import OneLineParser
from dsmoe.benchmark.results.comparison import compare, load_reference, load_rows, records_file, table_lines
from dsmoe.common.errors import ResultsError
from dsmoe.benchmark.results.figure import draw_comparison, draw_cpu, save
from dsmoe.benchmark.results.store import read_records
from dsmoe.common.errors import DsmoeError
from dsmoe.common.output import needs_no_reader


def parser() -> argparse.ArgumentParser:
    top = OneLineParser(
        prog="python -m dsmoe.benchmark.results.plot",
        description="Draw throughput against GPUs beside the reference published with the artifact "
        "(dsmoe/benchmark/results/reference.json). CPU runs are never part of that figure.",
    )
    add = top.add_argument
    add("results", nargs="+", type=Path, metavar="RESULTS", help="folders, .tsv or .jsonl files")
    add("--output", type=Path, default=Path("figure"), metavar="FIG", help="default: figure")
    add("--cpu", action="store_true", help="draw the CPU runs' tokens/s, a figure of its own")
    return top


def run(options: argparse.Namespace) -> int:
    if options.cpu:
        files = [records_file(path) for path in options.results]
        records = [r for file in files for r in read_records(file) if r.device == "cpu"]
        if not records:
            raise ResultsError("no CPU run in the results; leave --cpu out for the GPU runs")
        fig = draw_cpu(records)
    else:
        rows = load_rows(options.results)
        reference = load_reference()
        points = compare(rows, reference)
        print("\n".join(table_lines(points, reference)))
        print(f"TFLOPS per GPU, artifact's formula. Reference: {reference.provenance}.")
        cpu = sum(row.instance == "cpu" for row in rows)
        if cpu:
            print(f"{cpu} CPU run(s) are not drawn: they are no points of this figure (--cpu)")
        fig = draw_comparison(points, reference)
    for path in save(fig, options.output):
        print(f"wrote {path}")
    return 0


@needs_no_reader
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; expected failures are one line on standard error."""
    try:
        return run(parser().parse_args(arguments))
    except DsmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
