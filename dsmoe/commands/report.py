"""``dsmoe report``: a results folder as one HTML page."""

from __future__ import annotations

import argparse

from dsmoe.common.arguments import OneLineParser, add_output, file_name
from dsmoe.common.errors import exit_code_lines

NEEDS = ("filelock", "psutil", "matplotlib", "jinja2")

EXAMPLES = """examples:
  dsmoe report results                       # report.html
  dsmoe report results --output /tmp/runs.html

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Makes one self-contained HTML page of a results folder: runs, curves of loss "
        "and iteration\ntime, expert load, environment and configuration of each run.",
        epilog=EXAMPLES + exit_code_lines("report"),
    )
    parser.add_argument(
        "results",
        type=file_name,
        metavar="RESULTS",
        help="The records come from this results folder or .jsonl file.",
    )
    add_output(parser, "report.html", "The page is written to this file")
    return parser


def run(options: argparse.Namespace) -> int:
    """Write the page. Raises ResultsError."""
    from dsmoe.benchmark.results.page import write_page

    write_page(options.results, options.output)
    print(f"wrote {options.output}")
    return 0
