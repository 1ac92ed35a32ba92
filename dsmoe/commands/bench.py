"""``dsmoe bench``: the fast path against the reference path on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dsmoe.common.arguments import OneLineParser, count, positive
from dsmoe.common.errors import exit_code_lines

NEEDS = ("torch", "filelock", "git", "numpy", "psutil", "rich")
STEPS = 7

EXAMPLES = """examples:
  dsmoe bench                        a minute on two cores
  dsmoe bench --steps 20 --at-least 1.5
  dsmoe bench --table results        the records of a folder as a Markdown table

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Trains the same model on the same tokens by the fast path and by the "
        "reference path, step by\nstep in turn, and prints how many times as fast the first is.",
        epilog=EXAMPLES + exit_code_lines(0, 1, 2, 8, 10, 25, 130),
    )
    parser.add_argument(
        "--steps",
        type=count,
        default=STEPS,
        metavar="N",
        help=f"Each path takes N steps (default: {STEPS}).",
    )
    parser.add_argument(
        "--at-least",
        type=positive,
        metavar="X",
        help="The command fails (1) where the fast path is less than X times as fast.",
    )
    parser.add_argument(
        "--table",
        type=Path,
        metavar="DIR",
        help="The records of this results folder are printed as a table, and nothing is timed.",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Time both paths, or print a table."""
    from dsmoe.benchmark.timing import speed

    if options.table:
        speed.print_table(options.table)
        return 0
    found = speed.run(options.steps)
    speed.print_ratios(found, options.steps)
    slow = [row.name for row in found if row.ratio < (options.at_least or 0.0)]
    if slow:
        print(f"error: below {options.at_least:g} times: {', '.join(slow)}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if slow else 0)  # gloo's threads can abort an orderly end; see train/training.py
