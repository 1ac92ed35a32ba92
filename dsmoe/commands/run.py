"""The command line of ``./run_deepspeed_benchmark.sh``: arguments in, exit code out."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path

from dsmoe.benchmark.cases.chosen import RUN_FAILED, check_device, chosen_cases, parser
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.cases.suites import Case
from dsmoe.benchmark.preflight import local
from dsmoe.benchmark.preflight.hosts import head_facts, refuse_unfit
from dsmoe.benchmark.preflight.machine import Machine, machine_of, this_machine
from dsmoe.benchmark.results.store import RECORDS, ROWS
from dsmoe.benchmark.results.terminal import print_report
from dsmoe.benchmark.run import launch, one_case, patched_deepspeed, resume
from dsmoe.benchmark.run.folder import DEEPSPEED
from dsmoe.benchmark.run.layout import Layout, lay_out
from dsmoe.common.errors import DsmoeError, EnvironmentProblem, ResultsError, UsageError
from dsmoe.common.interrupts import Interrupted, StopSignals
from dsmoe.common.output import needs_no_reader
from dsmoe.common.places import import_root, work_folder
from dsmoe.hosts.host import Host
from dsmoe.hosts.hostfile import read_hostfile
from dsmoe.hosts.identity import is_this_machine

# Those of deepspeed/moe/kernels/policy.py, which needs torch; a test compares the two.
KERNELS_VARIABLE = "DSMOE_KERNELS"
KERNELS = ("all", "nccl", "cublas", "torch")


def run(options: argparse.Namespace, stop: StopSignals) -> int:
    for name in ("model", "global_batch", "device_memory"):
        if getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for --plan alone; leave it out")
    machine = head_machine(options)
    cases = chosen_cases(options, machine.device, machine.hardware.get("device_memory_bytes"))
    available = None if options.hostfile else machine.hardware.get("device_count")
    try:
        check_device(cases, machine.device, available)
    except UsageError as error:
        if not options.dry_run:
            raise
        print(f"# not to be run here: {error}")
        machine = dataclasses.replace(machine, device="cuda")
    layouts = [lay_out(options.hostfile, case.parallel.processes) for case in cases]
    if options.port:
        launch.check_port(options.port)
    if options.tensorboard:
        check_tensorboard()
    if options.dry_run:
        for case in cases:
            print_dry_run(case, machine, options)
        return 0
    local.quick(options.output)
    if options.tensorboard:
        make_folder(options.tensorboard.expanduser())
    place = patched_deepspeed.location()
    step(f"DeepSpeed checkout {place}")
    patched_deepspeed.ensure(place)
    trees = patched_deepspeed.trees(place)
    settings = run_settings(options)
    if options.hostfile:
        names = max((layout.names for layout in layouts), key=len)
        step(f"hosts of {options.hostfile}: {', '.join(names)}")
        check_layout(max(layouts, key=lambda layout: layout.hosts), place)
    codes = []
    for case in cases:
        codes.append(run_one(case, machine, trees, settings, options, stop))
    return max(codes)


def head_machine(options: argparse.Namespace) -> Machine:
    """Where the processes run: this machine, or the head of the host file as it says itself.

    A login machine, from which a run may be started, is often of another kind.
    """
    if options.hostfile is None or options.dry_run:
        return this_machine()
    head = read_hostfile(options.hostfile)[0].name
    if is_this_machine(head):
        return this_machine()
    step(f"asking {head}, the head of {options.hostfile}")
    facts = head_facts(head, options.hostfile, import_root(), patched_deepspeed.location())
    return machine_of(facts)


def check_layout(layout: Layout, place: Path) -> None:
    """The environment check of a run's hosts, unless it runs on this machine alone.

    Raises EnvironmentProblem; what is no reason to stop is printed.
    """
    if layout.hostfile is None or (layout.hosts == 1 and is_this_machine(layout.names[0])):
        return
    hosts = [Host(name, layout.devices) for name in layout.names]
    for line in refuse_unfit(hosts, layout.hostfile, import_root(), place):
        print(f"  warning: {line}")


def run_one(
    case: Case,
    machine: Machine,
    trees: patched_deepspeed.Trees,
    settings: one_case.Settings,
    options: argparse.Namespace,
    stop: StopSignals,
) -> int:
    """Run one case and print its table; 0, or RUN_FAILED."""
    step(f"text: {', '.join(options.data) or 'the Python standard library'}")
    content = one_case.prepare_text(settings.cache, settings.text, case).info
    print(f"  {content.train_tokens:,} tokens to train on, {content.held_out_tokens:,} held out")
    words = describe(case, machine)
    if options.resume:
        record = resume.finished(settings.output, case, machine.device, trees, content)
        if record is not None:
            step(f"finished already, skipped: {words} ({settings.output / record.run_folder})")
            return 0
    step(f"training {words}")
    record = one_case.run_case(case, machine, trees, settings, content, stop)
    print()
    print_report(record)
    print(f"\nrow in {settings.output / ROWS}, record in {settings.output / RECORDS}")
    if machine.device == "cpu":
        print("a CPU run: marked smoke-cpu, so that it never passes for a case of the paper")
    return 0 if record.status == "ok" else RUN_FAILED


def run_settings(options: argparse.Namespace) -> one_case.Settings:
    return one_case.Settings(
        output=options.output.expanduser(),
        cache=work_folder() / "text",
        text=one_case.text_options(options.data, options.tokenizer),
        time_out=options.time_out,
        port=options.port,
        tensorboard=options.tensorboard.expanduser() if options.tensorboard else None,
        hostfile=options.hostfile,
        master=options.master_addr,
    )


def describe(case: Case, machine: Machine) -> str:
    """The case in one line."""
    unit = "GPU" if machine.device == "cuda" else "CPU process"
    return (
        f"{case.suite} {case.model.name} on {case.parallel.processes} {unit}(s): "
        f"ZeRO-{case.parallel.zero_stage}, expert parallel {case.parallel.expert_parallel}, "
        f"{case.optimizer}, {case.precision}, {case.micro_batches} x {case.micro_batch_size} "
        f"sequences{', remat' if case.remat else ''}"
    )


def print_dry_run(case: Case, machine: Machine, options: argparse.Namespace) -> None:
    """Print what would be started. Nothing is written, built or downloaded."""
    settings = run_settings(options)
    run_dir = settings.output / "runs" / f"TIME-{one_case.run_name(case)}"
    port = options.port or launch.free_port()
    layout = lay_out(options.hostfile, case.parallel.processes)
    # without the number of this machine's GPUs: the line may be for another one
    job = launch.Job(
        patched_deepspeed.location(), run_dir.absolute(), layout, port, options.master_addr
    )
    tensorboard = (str(settings.tensorboard), run_dir.name) if settings.tensorboard else None
    print(f"# {describe(case, machine)}")
    print("# to be read: the folder TIME-... and what is in it are made by a run")
    print(f"# the DeepSpeed configuration would be {run_dir / DEEPSPEED}:")
    for line in json.dumps(deepspeed_config(case, machine.device, tensorboard)).splitlines():
        print(f"#   {line}")
    print(job.shell_line())


def check_kernels() -> None:
    """Raises UsageError for a choice of kernels that the training processes would refuse."""
    choice = os.environ.get(KERNELS_VARIABLE) or KERNELS[0]
    if choice not in KERNELS:
        raise UsageError(f"{KERNELS_VARIABLE}={choice!a}; expected one of {', '.join(KERNELS)}")


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


def step(words: str) -> None:
    print(f"== {words}", flush=True)


@needs_no_reader
def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; expected failures are one line on standard error."""
    try:
        options = parser().parse_args(arguments)
        check_kernels()
        with StopSignals() as stop:
            if options.plan:
                from dsmoe.benchmark.plan.estimate import print_plans

                return print_plans(options)
            return run(options, stop)
    except Interrupted as error:
        print(f"\n{error}: all processes of the run were ended", file=sys.stderr)
        return error.exit_code
    except DsmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
