"""``dsmoe plot``: the paper's MoE figure as PNG and PDF, and its comparison table."""

from __future__ import annotations

import argparse
from typing import Any

from dsmoe.common.arguments import OneLineParser, add_output, file_name
from dsmoe.common.errors import ResultsError, UsageError, exit_code_lines
from dsmoe.common.tables import wrapped

NEEDS = ("filelock", "psutil", "matplotlib")
#: GPUs a host, with which each of the paper's points is whole hosts.
HOSTS_OF = (8, 16, 32, 64)

EXAMPLES = """examples:
  dsmoe plot results                      # figure.png, figure.pdf and the table
  dsmoe plot results old.tsv --output paper/moe
  dsmoe plot results --cpu --output cpu   # tokens/s of CPU runs, a figure of its own
  dsmoe plot --predicted --output scaling # the same figure, as it is predicted

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Draws throughput against GPUs beside the reference that was published with "
        "the artifact.\nA point that was not measured is a gap with a word; CPU runs are never "
        "part of that figure.",
        epilog=EXAMPLES + exit_code_lines("plot"),
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=file_name,
        metavar="RESULTS",
        help="The rows come from these results folders, .tsv or .jsonl files.",
    )
    add_output(parser, "figure", "The figure is written to PATH.png and PATH.pdf")
    parser.add_argument(
        "--cpu", action="store_true", help="The figure shows tokens/s of the CPU runs instead."
    )
    parser.add_argument(
        "--predicted",
        action="store_true",
        help="The figure shows what is predicted for the paper's points as lines, beside the "
        "points that were published (and those of RESULTS, if any).",
    )
    parser.add_argument(
        "--cluster",
        metavar="NAME",
        help="With --predicted: the lines are for this cluster (default: p3.16xlarge).",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the table, write the figure. Raises ResultsError, EnvironmentProblem."""
    from dsmoe.benchmark.results.comparison import (
        compare,
        load_reference,
        load_rows,
        records_file,
        table_lines,
    )
    from dsmoe.benchmark.results.figure import draw_comparison, draw_cpu, save
    from dsmoe.benchmark.results.store import read_records

    if options.cluster and not options.predicted:
        raise UsageError("--cluster is for --predicted; give both, or leave it out")
    if options.predicted and options.cpu:
        raise UsageError("--predicted and --cpu are figures of their own; leave one of them out")
    if not options.results and not options.predicted:
        raise UsageError("found no RESULTS; expected a results folder, or --predicted")
    if options.predicted:
        fig = _predicted(options)
    elif options.cpu:
        files = [records_file(path) for path in options.results]
        records = [r for file in files for r in read_records(file) if r.device == "cpu"]
        if not records:
            raise ResultsError("no CPU run in the results; leave --cpu out for the GPU runs")
        fig = draw_cpu(records)
    else:
        rows = load_rows(options.results, print)
        reference = load_reference()
        points = compare(rows, reference)
        print("\n".join(table_lines(points, reference)))
        legend = f"TFLOPS per GPU, artifact's formula. Reference: {reference.provenance}."
        print("\n".join(wrapped(legend, further="")))
        cpu = sum(row.instance == "cpu" for row in rows)
        if cpu:
            print(f"{cpu} CPU run(s) are not drawn: they are no points of this figure (--cpu)")
        fig = draw_comparison(points, reference)
    for path in save(fig, options.output):
        print(f"wrote {path}")
    return 0


def _predicted(options: argparse.Namespace) -> Any:
    """Print the table of the predicted figure; the figure."""
    from dsmoe.benchmark.predict.paper import paper_points
    from dsmoe.benchmark.predict.rates.cluster import load_cluster
    from dsmoe.benchmark.results.comparison import compare, load_reference, load_rows
    from dsmoe.benchmark.results.predicted import draw_predicted, predicted_lines

    cluster = load_cluster(options.cluster or "p3.16xlarge")
    if cluster.device == "cpu" or cluster.gpus_per_host not in HOSTS_OF:
        found = "a CPU" if cluster.device == "cpu" else f"hosts of {cluster.gpus_per_host}"
        raise UsageError(
            f"--cluster {options.cluster}: found {found}; the paper's experts are spread over 8 "
            "GPUs of a host: expected a file with gpus_per_host 8, 16, 32 or 64"
        )
    reference = load_reference()
    rows = load_rows(options.results, print) if options.results else []
    points = paper_points(cluster)
    print("\n".join(predicted_lines(points, reference)))
    legend = (
        "TFLOPS per GPU, artifact's formula at the published settings. DeepSpeed, Alpa: published; "
        f"the rest: predicted for {cluster.name}."
    )
    print("\n".join(wrapped(legend, further="")))
    return draw_predicted(points, reference, compare(rows, reference), cluster.name)
