"""``dsmoe run``: its options become one request, which is then carried out."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dsmoe.commands import launching
from dsmoe.commands import options as shared
from dsmoe.common.arguments import OneLineParser, add_output, count, file_name, plain_name, positive
from dsmoe.common.errors import EnvironmentProblem, ResultsError, UsageError, exit_code_lines
from dsmoe.common.files import expanded
from dsmoe.common.interrupts import StopSignals
from dsmoe.common.kernel_choice import check_kernels
from dsmoe.common.places import chosen_checkout, work_folder

if TYPE_CHECKING:  # importing these takes time and packages that --help does not need
    from dsmoe.benchmark.data.sources import Survey
    from dsmoe.benchmark.launchers.interface import Launcher
    from dsmoe.benchmark.run.request import Request

NEEDS = ("filelock", "git", "numpy", "psutil")

EXAMPLES = """examples:
  dsmoe run 8                          # the artifact's case for 8 GPUs
  dsmoe run 1                          # with no GPU: a small model on the CPU
  dsmoe run 2 --data ~/books           # two processes, on your own text
  dsmoe run 8 --all --resume           # the suite's cases up to 8 GPUs, unfinished ones
  dsmoe run 1 --zero-stage 1 --steps 50 --output /tmp/zero1
  dsmoe run 32 --launcher slurm --print-sbatch        # a batch script for sbatch
  dsmoe run 16 --launcher torchrun     # in each process of torchrun, mpirun, a PyTorchJob

"""


def make_parser(prog: str) -> OneLineParser:
    """The options of the command."""
    parser = OneLineParser(
        prog=prog,
        description="Trains DeepSpeed's MoE language model and records how fast it went: a row in "
        "the artifact's\nformat and a JSON record, in the results folder.",
        epilog=EXAMPLES.replace("dsmoe run", prog) + exit_code_lines("run"),
    )
    shared.add_case_options(parser)
    shared.add_text_options(parser)
    results = parser.add_argument_group("results")
    add_output(results, "results", "Rows, records and run folders go to this folder")
    results.add_argument(
        "--resume", action="store_true", help="Cases that --output has finished are skipped."
    )
    results.add_argument(
        "--link",
        type=plain_name,
        metavar="NAME",
        help="What each host sends and receives in an iteration is counted at its network "
        "interface; the record keeps it, and calls the link NAME.",
    )
    results.add_argument(
        "--tensorboard",
        type=file_name,
        metavar="DIR",
        help="DeepSpeed writes event files for TensorBoard to this folder.",
    )
    before = parser.add_argument_group("before anything starts")
    before.add_argument(
        "--dry-run",
        action="store_true",
        help="The launcher's command is printed, and nothing is written.",
    )
    launching.add_print_sbatch(before)
    before.add_argument(
        "--plan", action="store_true", help="The same as dsmoe plan: nothing is started."
    )
    add_places(parser)
    plan = parser.add_argument_group("with --plan")
    shared.add_plan_options(plan)
    return parser


def add_places(parser: OneLineParser) -> None:
    """Where the processes run, and which DeepSpeed they import."""
    base = parser.add_argument_group("DeepSpeed")
    base.add_argument(
        "--deepspeed",
        type=file_name,
        metavar="PATH",
        help="The processes import this checkout, which is patched first (default: "
        "DSMOE_DEEPSPEED, the artifact's DEEPSPEED_PATH, else build/DeepSpeed).",
    )
    hosts = parser.add_argument_group("hosts and processes")
    launching.add_launcher(hosts)
    add = hosts.add_argument
    add(
        "--hostfile",
        type=file_name,
        metavar="FILE",
        help="The processes run on the hosts of this file (dsmoe hosts writes one).",
    )
    add(
        "--master-addr",
        metavar="ADDR",
        help="The other hosts meet the first one at this address (default: where ssh reaches it).",
    )
    add(
        "--port",
        type=count,
        metavar="N",
        help="The processes meet at this port (default: a free one).",
    )
    add(
        "--time-out",
        type=positive,
        default=600.0,
        metavar="SECONDS",
        help="A run without a new iteration for so long is ended; the first iteration may take "
        "three times that and at least 300 seconds (default: 600).",
    )


def run(options: argparse.Namespace) -> int:
    """Carry the command out; the exit code."""
    check_kernels(os.environ)
    if options.plan:
        from dsmoe.commands import plan

        options.json, options.cluster = False, None
        options.search = options.explain = False
        return plan.run(options)
    for name in ("model", "device_memory"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for dsmoe plan alone; leave it out")
    if options.print_sbatch:
        return launching.print_sbatch("run", options)
    code = launching.follow(options)
    if code is not None:
        return code
    with StopSignals() as stop:
        return launching.launched(options, lambda *found: _run(options, stop, *found))


def _run(options: argparse.Namespace, stop: StopSignals, launcher: Launcher, reason: str) -> int:
    surveyed = check_text(options)
    request = dataclasses.replace(request_of(options, launcher, reason), surveyed=surveyed)
    if options.dry_run:
        print_dry_run(request)
        return 0
    from dsmoe.benchmark.run.every_case import run_cases

    if request.tensorboard:
        make_folder(request.tensorboard)
    return run_cases(request, stop)


def request_of(options: argparse.Namespace, launcher: Launcher, reason: str) -> Request:
    """What the options ask for, resolved once. Raises DsmoeError."""
    from dsmoe.benchmark.cases.choice import case_of_model, check_device, chosen_cases
    from dsmoe.benchmark.predict.fastest import fastest_for
    from dsmoe.benchmark.run.launch import check_port
    from dsmoe.benchmark.run.request import Request, Text, limits

    machine = launching.head(launcher, options.gpus, options.deepspeed, options.dry_run)
    memory = machine.hardware.get("device_memory_bytes")

    def on_hosts(processes: int) -> int:
        return launcher.lay_out(processes).devices

    fastest = fastest_for(None, machine.device, machine.gpu, memory)
    if getattr(options, "model", None):
        changes = shared.changes_of(options)
        cases = [case_of_model(options.model, options.gpus, changes, on_hosts, memory, fastest)]
    else:
        wanted = shared.wanted_of(options)
        cases = chosen_cases(wanted, machine.device, memory, on_hosts, fastest)
    try:
        here = launcher.way() is None
        available = machine.hardware.get("device_count") if here else None
        check_device(cases, machine.device, available)
    except UsageError as error:
        if not options.dry_run:
            raise
        print(f"# not to be run here: {error}")
        machine = dataclasses.replace(machine, device="cuda")
    if options.port:
        check_port(options.port)  # the head is most often this machine
    if options.tensorboard:
        check_tensorboard()
    checkout, checkout_reason = chosen_checkout(options.deepspeed)
    return Request(
        cases=tuple((c, launcher.lay_out(c.parallel.processes)) for c in cases),
        machine=machine,
        checkout=checkout,
        checkout_reason=checkout_reason,
        text=Text.of(shared.text_paths(options), options.tokenizer, options.text_field),
        cache=work_folder() / "text",
        output=expanded(options.output),
        limits=limits(options.time_out),
        launcher=launcher,
        launcher_reason=reason,
        port=options.port,
        tensorboard=expanded(options.tensorboard) if options.tensorboard else None,
        master=options.master_addr,
        resume=options.resume,
        link=options.link,
    )


def print_dry_run(request: Request) -> None:
    """Print what would be started. Nothing is written, built or downloaded."""
    from dsmoe.benchmark.cases.choice import in_words
    from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
    from dsmoe.benchmark.launchers.job import Job
    from dsmoe.benchmark.run.folder import DEEPSPEED
    from dsmoe.benchmark.run.request import run_name

    device = request.machine.device
    for case, layout in request.cases:
        run_dir = request.output / "runs" / f"TIME-{run_name(case)}"
        # without the number of this machine's GPUs: the line may be for another one
        job = Job(request.checkout, run_dir.absolute(), layout, request.port, request.master)
        tensorboard = (str(request.tensorboard), run_dir.name) if request.tensorboard else None
        what = in_words(case, "GPU" if device == "cuda" else "CPU process")
        chosen = f"; settings: {case.source}" if "auto" in case.source else ""
        print(f"# {what}{chosen}; launcher {request.launcher.name} ({request.launcher_reason})")
        print("# to be read: the folder TIME-... and what is in it are made by a run")
        print(f"# the DeepSpeed configuration would be {run_dir / DEEPSPEED}:")
        for line in json.dumps(deepspeed_config(case, device, tensorboard)).splitlines():
            print(f"#   {line}")
        print(request.launcher.line(job))


def check_text(options: argparse.Namespace) -> Survey | None:
    """The files of the text; None for a token pair, which is opened where numpy is installed.

    Raises DataError and EnvironmentProblem for what a run would find after its set-up: text,
    tokenizer or results folder that cannot be.
    """
    from dsmoe.benchmark.data.pair_names import is_pair
    from dsmoe.benchmark.data.sources import refuse_field, survey
    from dsmoe.benchmark.data.tokenizer import load_tokenizer
    from dsmoe.benchmark.preflight.local_checks import refuse_output

    refuse_output(expanded(options.output))
    load_tokenizer(options.tokenizer and str(expanded(options.tokenizer)))
    paths = shared.text_paths(options)
    found = None
    if not is_pair(paths):
        found = survey(paths)
    elif importlib.util.find_spec("numpy"):  # otherwise the run does after its set-up
        from dsmoe.benchmark.data.indexed_dataset import TokenPair

        TokenPair(expanded(paths[0]))
    refuse_field(options.text_field, [source.path for source in found.sources] if found else [])
    return found


def make_folder(folder: Path) -> None:
    """Make the folder of event files, if it is not there. Raises ResultsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(
            f"--tensorboard {folder}: found that it cannot be made ({error.strerror}); expected a "
            "folder to write to"
        ) from error


def check_tensorboard() -> None:
    """Raises EnvironmentProblem where no writer of event files is installed."""
    if not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise EnvironmentProblem(
            "--tensorboard needs the package tensorboard, which is not installed; run: "
            f"{sys.executable} -m pip install tensorboard"
        )
