"""``dsmoe bench``: settings and paths of this project beside one another on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dsmoe.commands import bench_hosts
from dsmoe.common.arguments import OneLineParser, file_name, positive
from dsmoe.common.errors import EnvironmentProblem, exit_code_lines
from dsmoe.common.interrupts import StopSignals
from dsmoe.common.places import chosen_checkout, work_folder

NEEDS = ("torch", "filelock", "git", "numpy", "psutil", "rich")
STEPS = 7

EXAMPLES = """examples:
  dsmoe bench                        # a minute on two cores
  dsmoe bench --steps 20 --at-least 1.5
  dsmoe bench --gpu                  # published baseline, artifact, tuned on one GPU, with ratios
  dsmoe bench --ladder               # the same with every speed-up between them, one at a time
  dsmoe bench --table results        # the records of a folder as a Markdown table
  dsmoe bench --hosts 2 --per-host 2 --rate 1gbit --micro-batches 1,8
  dsmoe bench --hosts 2 --setting zero-stage=1 --setting no-flat-gradients

"""
OUTPUT = "results/bench"


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Trains the same model on the same tokens by the fast path and by the "
        "reference path, step by\nstep in turn, and prints how many times as fast the first is. On "
        "a GPU, --gpu and --ladder run\nthe 380M case from the published baseline to the fastest "
        "settings instead. With\n--hosts it makes hosts of network namespaces on this machine, "
        "with a switch and links of a\ngiven rate, runs the benchmark over them through its "
        "launcher, and prints what each host\nsends in an iteration.",
        epilog=EXAMPLES + exit_code_lines("bench"),
    )
    parser.add_argument(
        "--at-least",
        type=positive,
        metavar="X",
        help="The command fails (1) where the fast path is less than X times as fast.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--gpu",
        action="store_true",
        help="The suites published, artifact and tuned run on one GPU, with their ratios.",
    )
    what.add_argument(
        "--ladder",
        action="store_true",
        help="Every speed-up between published and tuned gets a run and a row.",
    )
    parser.add_argument(
        "--output",
        type=file_name,
        metavar="PATH",
        help="Rows and records of --gpu, --ladder and --hosts go here (default: "
        f"{OUTPUT}, with --hosts {bench_hosts.OUTPUT}).",
    )
    what.add_argument(
        "--table",
        type=file_name,
        metavar="DIR",
        help="The records of this results folder are printed as a table, and nothing is timed.",
    )
    bench_hosts.add_options(parser, what)
    return parser


def run(options: argparse.Namespace) -> int:
    """Time both paths, or print a table."""
    if options.hosts is not None:
        return bench_hosts.run(options)
    bench_hosts.refuse_without(options)
    options.output = options.output or Path(OUTPUT)
    if options.gpu or options.ladder:
        return run_on_gpu(options)
    if options.table:
        from dsmoe.benchmark.results.markdown import print_table

        print_table(options.table)
        return 0
    from dsmoe.benchmark.timing import speed

    steps = options.steps or STEPS
    found = speed.run(steps)
    speed.print_ratios(found, steps)
    slow = [row.name for row in found if row.ratio < (options.at_least or 0.0)]
    if slow:
        print(f"error: below {options.at_least:g} times: {', '.join(slow)}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if slow else 0)  # gloo's threads can abort an orderly end; see train/training.py


def run_on_gpu(options: argparse.Namespace) -> int:
    """Run the rungs one after another; 1 if one failed. Raises DsmoeError.

    A rung that fails is a row that says so, and the next one goes on.
    """
    from dsmoe.benchmark.preflight.machine import this_machine
    from dsmoe.benchmark.results.store import RECORDS, read_records
    from dsmoe.benchmark.run.every_case import RUN_FAILED, run_cases, step
    from dsmoe.benchmark.run.layout import lay_out
    from dsmoe.benchmark.run.request import Request, Text, limits
    from dsmoe.benchmark.timing import ladder

    machine = this_machine()
    if machine.device != "cuda":
        raise EnvironmentProblem(
            "no GPU was found; expected one: dsmoe bench alone compares the paths on a CPU"
        )
    memory = machine.hardware.get("device_memory_bytes")
    checkout, reason = chosen_checkout()
    done = []
    code = 0
    with StopSignals() as stop:
        for rung in ladder.rungs(memory) if options.ladder else ladder.three(memory):
            step(f"rung: {rung.words}")
            request = Request(
                cases=((rung.case, lay_out(None, 1)),),
                machine=machine,
                checkout=checkout,
                checkout_reason=reason,
                text=Text.of([], None),
                cache=work_folder() / "text",
                output=options.output,
                limits=limits(),
            )
            with ladder.allowed(rung.kernels):
                if run_cases(request, stop) == RUN_FAILED:
                    code = RUN_FAILED
            done.append((rung.words, read_records(options.output / RECORDS)[-1]))
    print()
    print("\n".join(ladder.table(done)))
    print(f"on {machine.instance}, torch {machine.versions['torch']}")
    print("times: against the first row; GiB: at the peak of a step; mJ: of a token")
    return code
