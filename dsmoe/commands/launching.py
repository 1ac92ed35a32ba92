"""The launcher that the options of a command mean."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from dsmoe.benchmark.launchers.names import AUTO, NAMES
from dsmoe.common.arguments import count
from dsmoe.common.errors import DsmoeError, UsageError
from dsmoe.common.places import chosen_checkout, import_root

if TYPE_CHECKING:
    from dsmoe.benchmark.launchers.interface import Launcher
    from dsmoe.benchmark.preflight.machine import Machine


def add_launcher(group: argparse._ActionsContainer, words: str = "") -> None:
    """The option that says by what the processes are started."""
    group.add_argument(
        "--launcher",
        choices=NAMES,
        default=AUTO,
        help=words
        or "The processes are started by DeepSpeed's launcher over ssh or here (local), by one "
        "srun, by a Ray cluster, or were started by torchrun, mpirun or Kubernetes; auto (the "
        "default) takes what is there and says why.",
    )


def add_print_sbatch(
    group: argparse._ActionsContainer, of: str = "--print-sbatch or --plan"
) -> None:
    """The options of the batch script; ``of``: those that say how many GPUs a host has."""
    group.add_argument(
        "--print-sbatch",
        action="store_true",
        help="A batch script for Slurm's sbatch is printed that runs this very command on as many "
        "nodes as it needs.",
    )
    group.add_argument(
        "--per-host",
        type=count,
        metavar="N",
        help=f"With {of}: a host has N GPUs (default: 8, or the most up to 8 that fill hosts).",
    )


def print_sbatch(command: str, options: argparse.Namespace) -> int:
    """Print the batch script of the command line as it was typed. Raises UsageError."""
    from dsmoe.benchmark.cases.choice import chosen_cases
    from dsmoe.benchmark.launchers.sbatch import batch_script
    from dsmoe.commands.options import wanted_of

    if options.launcher not in (AUTO, "slurm") or options.hostfile is not None:
        raise UsageError("--print-sbatch is for --launcher slurm, without --hostfile")
    # What the job would refuse after its time in the queue; without a suite it is for GPUs.
    if options.model is None:
        device = "cpu" if options.suite == "smoke" else "cuda"
        # the job's hosts are not known: of --pipeline auto any case will do
        chosen_cases(wanted_of(options), device, fastest=lambda cases, devices: cases[0])
    kept: list[str] = []
    typed = iter(options.typed)
    for word in typed:
        if word in ("--per-host", "--launcher"):
            next(typed)
        elif word != "--print-sbatch" and not word.startswith(("--per-host=", "--launcher=")):
            kept.append(word)
    words = [command, *kept, "--launcher", "slurm"]
    print(batch_script(words, options.gpus, options.per_host, options.suite, Path.cwd()), end="")
    return 0


def follow(options: argparse.Namespace) -> int | None:
    """The exit code of a command that a launcher from outside started beside the one that leads."""
    from dsmoe.benchmark.launchers import outside

    return outside.follow(options.launcher, os.environ)


def launched(
    options: argparse.Namespace, work: Callable[[Launcher, str], int], to_check: bool = False
) -> int:
    """Do ``work`` with the launcher that the options mean, and why it is that; the exit code.

    What else was started with this command ends with the same code. Raises DsmoeError.
    """
    from dsmoe.benchmark.launchers.which import choose

    def written() -> Path | None:
        return None if to_check else _written_hostfile(options)

    launcher, reason = choose(options.launcher, options.hostfile, os.environ, written)
    code = 1
    try:
        if not (to_check or options.dry_run):
            print(f"== launcher {launcher.name}: {reason}", flush=True)
        code = work(launcher, reason)
    except DsmoeError as error:
        code = error.exit_code
        raise
    finally:
        launcher.close(code)
    return code


def _written_hostfile(options: argparse.Namespace) -> Path | None:
    """The host file for NUM_GPUS that dsmoe hosts wrote here, where this machine has too few GPUs.

    As the artifact's script, which takes hostfile_2node for 16 GPUs and hostfile_4node for 32.
    """
    from dsmoe.benchmark.preflight.machine import this_machine

    gpus = this_machine().gpus
    nodes = -(-options.gpus // gpus) if gpus else 1
    if nodes < 2 or options.all or options.dry_run:
        return None
    for folder in (Path(), Path("deepspeed")):
        found = folder / f"hostfile_{nodes}node"
        if found.is_file():
            return found
    return None


def head(
    launcher: Launcher, processes: int, deepspeed: Path | None, only_print: bool = False
) -> Machine:
    """Where the processes run: this machine, or the head of the hosts as it says itself.

    A login machine, from which a run may be started, is often of another kind. ``deepspeed``: the
    option of that name. ``only_print``: no other host is asked.
    """
    from dsmoe.benchmark.preflight.host_checks import head_facts
    from dsmoe.benchmark.preflight.machine import machine_of, this_machine
    from dsmoe.hosts.host import Host

    way = launcher.way()
    if way is None or only_print:
        return this_machine()
    layout = launcher.lay_out(processes)
    name = launcher.distant_head(layout)
    if name is None:
        return this_machine()
    print(f"== asking {name}, the first host", file=sys.stderr, flush=True)
    checkout, _ = chosen_checkout(deepspeed)
    return machine_of(head_facts(Host(name, layout.devices), way, import_root(), checkout))
