"""``dsmoe check``: is everything there that a run needs?"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dsmoe.commands import launching
from dsmoe.common.arguments import OneLineParser, add_json, add_output, file_name
from dsmoe.common.errors import EnvironmentProblem, exit_code_lines

if TYPE_CHECKING:
    from dsmoe.benchmark.launchers.interface import Launcher

NEEDS = ("filelock", "git", "numpy", "psutil")

EXAMPLES = """examples:
  dsmoe check                                # this machine
  dsmoe check --hostfile hostfile --json     # every host of the file too
  dsmoe check --launcher slurm               # every node of the job around it

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Checks what a run needs, on this machine and on the hosts of a host file: "
        "Python, torch,\nGPUs and their kernels, the patched DeepSpeed, ssh, disk, clocks.",
        epilog=EXAMPLES + exit_code_lines("check"),
    )
    launching.add_launcher(parser)
    parser.add_argument(
        "--hostfile",
        type=file_name,
        metavar="FILE",
        help="The hosts of this file are asked too, through ssh.",
    )
    add_output(parser, "results", "The disk of this folder is checked")
    add_json(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print a line for each check; 8 if one failed."""
    from dsmoe.benchmark.preflight.check import as_json, failures, table
    from dsmoe.benchmark.preflight.local_checks import all_checks

    code = launching.follow(options)
    if code is not None:
        return code

    def check(launcher: Launcher, reason: str) -> int:
        way = launcher.way()
        checks = all_checks(launcher.hosts() if way else [], way, options.output)
        print(as_json(checks) if options.json else "\n".join(table(checks)))
        bad = len(failures(checks))
        if bad and not options.json:
            print(f"{bad} of {len(checks)} checks failed")
        return EnvironmentProblem.exit_code if bad else 0

    return launching.launched(options, check, to_check=True)
