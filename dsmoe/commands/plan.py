"""``dsmoe plan``: what a run needs of memory and network, before anything starts."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from dsmoe.benchmark.launchers.names import AUTO
from dsmoe.commands import launching
from dsmoe.commands import options as shared
from dsmoe.common.arguments import OneLineParser, count
from dsmoe.common.errors import UsageError, exit_code_lines
from dsmoe.common.kernel_choice import check_kernels
from dsmoe.common.places import checkout_folder

if TYPE_CHECKING:
    from dsmoe.benchmark.launchers.interface import Launcher

NEEDS = ("filelock", "git", "numpy", "psutil")
FITS, DOES_NOT_FIT = 0, 1

EXAMPLES = """examples:
  dsmoe plan 8                                   the artifact's case for 8 GPUs
  dsmoe plan 64 --suite paper                    the paper's largest case
  dsmoe plan 128 --model 70B --zero-stage 1      any named size on any number of GPUs
  dsmoe plan 1 --suite tuned --device-memory 80 --json
  dsmoe plan 16 --launcher slurm                 on the nodes of the job around it

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Says how much memory a process needs in a training step, by kind, and how "
        "many bytes it sends.\nThe real model goes through a step without values; nothing is "
        "started, and no GPU is needed.",
        epilog=EXAMPLES.replace("dsmoe plan", prog) + exit_code_lines(0, 1, 2, 8, 16, 17, 130),
    )
    shared.add_case_options(parser)
    shared.add_plan_options(parser.add_argument_group("what is planned for"))
    parser.add_argument(
        "--per-host",
        type=count,
        metavar="N",
        help="A host has N GPUs (default: 8, or the most up to 8 that fill hosts).",
    )
    launching.add_launcher(
        parser,
        "The hosts are those of this launcher, and the first of them says what GPUs it has "
        "(default: the plan asks none).",
    )
    parser.set_defaults(hostfile=None)
    shared.add_json(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the plan of every chosen case; DOES_NOT_FIT if one is too large.

    Builds the DeepSpeed checkout if it is missing. Raises DsmoeError.
    """
    if options.launcher == AUTO and options.hostfile is None:
        return _plan(options, None)
    code = launching.follow(options)
    if code is not None:
        return code
    return launching.launched(options, lambda found, _: _plan(options, found), to_check=True)


def _plan(options: argparse.Namespace, launcher: Launcher | None) -> int:
    from dsmoe.benchmark.cases.choice import case_of_model, chosen_cases
    from dsmoe.benchmark.cases.placement import devices_of_a_host, exchanged_share
    from dsmoe.benchmark.plan.estimate import estimate, plan_lines, verdict
    from dsmoe.benchmark.preflight.machine import this_machine
    from dsmoe.benchmark.run import patched_deepspeed

    check_kernels(os.environ)

    def on_hosts(processes: int) -> int:
        if launcher is not None and not options.per_host:
            return launcher.lay_out(processes).devices
        devices = options.per_host or devices_of_a_host(processes)
        if processes % devices and processes > devices:
            raise UsageError(
                f"--per-host {devices}: {processes} processes do not fill hosts of {devices}; name "
                f"a number that divides {processes}"
            )
        return min(processes, devices)

    machine = launching.head(launcher, options.gpus, None) if launcher else this_machine()
    on_cpu = machine.device == "cpu" and options.model is None
    on_cpu = on_cpu and options.suite in (None, "smoke")
    device = "cpu" if on_cpu else "cuda"
    if options.model is not None:
        for name in ("suite", "method", "all"):
            if getattr(options, name):
                raise UsageError(f"--{name} does not go with --model; leave one of them out")
        changes = shared.changes_of(options)
        cases = [case_of_model(options.model, options.gpus, changes, on_hosts)]
    else:
        memory = device_memory(options.device_memory, machine.hardware, "cuda", 1)
        wanted = shared.wanted_of(options)
        cases = chosen_cases(wanted, machine.device, memory, on_hosts)
    checkout = checkout_folder()
    if options.json:
        patched_deepspeed.ensure(checkout, say=lambda text: None)
    else:
        patched_deepspeed.ensure(checkout)
    reports: list[dict[str, Any]] = []
    for case in cases:
        plan = estimate(case, device, checkout)
        devices = on_hosts(case.parallel.processes)
        exchanged = plan["sent"].get("all-to-all", 0) * devices
        plan["exchange_between_hosts"] = round(exchanged * exchanged_share(case.parallel, devices))
        there = device_memory(
            options.device_memory, machine.hardware, device, case.parallel.processes
        )
        fits, words = verdict(plan["peak"], there, device)
        reports.append({"case": case.to_dict(), **plan, "fits": fits, "verdict": words})
        if not options.json:
            print()
            print("\n".join(plan_lines(case, plan, there, device)))
    if options.json:
        print(json.dumps(reports[0] if len(reports) == 1 else {"plans": reports}, indent=2))
    return FITS if all(report["fits"] for report in reports) else DOES_NOT_FIT


def device_memory(
    stated: float | None, hardware: dict[str, Any], device: str, processes: int
) -> int | None:
    """Bytes for one process: ``stated`` in GiB, the GPU's, or a share of this machine's."""
    if stated:
        return int(stated * 2**30)
    if device == "cuda":
        known: int | None = hardware.get("device_memory_bytes")
        return known
    import psutil

    return int(psutil.virtual_memory().total) // processes
