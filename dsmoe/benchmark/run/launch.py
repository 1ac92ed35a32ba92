"""Start a run through DeepSpeed's own launcher, watch it, and end it."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from dsmoe.benchmark.preflight.probe import cores
from dsmoe.benchmark.run.folder import ITERATIONS, LOG, IterationLog
from dsmoe.benchmark.run.layout import Layout
from dsmoe.benchmark.run.marks import NOTE
from dsmoe.benchmark.run.processes import Output, own_session
from dsmoe.benchmark.run.reasons import hung, reason
from dsmoe.common.errors import EnvironmentProblem, UsageError
from dsmoe.common.interrupts import StopSignals
from dsmoe.common.places import LAUNCHER, import_root

POLL_SECONDS = 0.1
TRAINING_PROCESS = import_root() / "dsmoe" / "benchmark" / "train" / "process.py"
LOCALHOST = "127.0.0.1"


def free_port() -> int:
    """A port of this machine that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> int:
    """``port``, if nothing listens on it. Raises UsageError or EnvironmentProblem."""
    if not 1 <= port <= 65535:
        raise UsageError(f"port {port}: expected a number from 1 to 65535")
    with socket.socket() as probe:
        # As torch's own listening socket does, so that a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise EnvironmentProblem(
                f"port {port} cannot be used: {error.strerror}; expected a free one: leave --port "
                "out, and one is chosen"
            ) from error
    return port


@dataclass(frozen=True)
class Job:
    """What the launcher is asked for: training processes where ``layout`` says.

    Without a host file the launcher is given /dev/null, so that it never picks up /job/hostfile,
    its own default. ``master`` None: the launcher finds the address of the first host. ``script``
    is what each process runs. ``gpus``: of this machine, where they are counted already, so that
    the launcher need not import torch for that.
    """

    checkout: Path
    run_dir: Path
    layout: Layout
    port: int
    master: str | None = None
    script: Path = TRAINING_PROCESS
    gpus: int | None = None

    def command(self) -> list[str]:
        """The launcher's command line, a list that no shell reads: that of bin/ds without what it
        imports and does not need."""
        hostfile = self.layout.hostfile
        master = self.master or (None if hostfile else LOCALHOST)
        return [
            sys.executable,
            str(self.checkout / LAUNCHER),
            "runner",
            "--hostfile",
            str(hostfile or os.devnull),
            *(["--num_nodes", str(self.layout.hosts)] if hostfile else []),
            "--num_gpus",
            str(self.layout.devices),
            *(["--master_addr", master] if master else []),
            "--master_port",
            str(self.port),
            str(self.script),
            "--watched",
            "--run-dir",
            str(self.run_dir),
        ]

    def added_environment(self) -> dict[str, str]:
        """The variables that are set beside those of this process."""
        paths = [str(self.checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
        added = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        if self.gpus is not None and self.layout.hostfile is None:
            added["DSMOE_DEVICES"] = str(self.gpus)
        if "OMP_NUM_THREADS" not in os.environ:
            added["OMP_NUM_THREADS"] = str(max(1, cores() // self.layout.devices))
        if (
            self.layout.hostfile is None
            and "GLOO_SOCKET_IFNAME" not in os.environ
            and "lo" in (name for _, name in socket.if_nameindex())
        ):
            # gloo looks up this machine's name, which need not resolve to an address of its own.
            added["GLOO_SOCKET_IFNAME"] = "lo"
        return added

    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.added_environment()}

    def shell_line(self) -> str:
        """The command as a line for a POSIX shell, every word quoted."""
        added = [f"{name}={shlex.quote(text)}" for name, text in self.added_environment().items()]
        return " ".join([*added, *map(shlex.quote, self.command())])

    def check(self) -> None:
        """Raises EnvironmentProblem where the launcher is not there."""
        launcher = self.checkout / LAUNCHER
        if not launcher.is_file():
            raise EnvironmentProblem(
                f"{launcher}: no such file; expected DeepSpeed's launcher: run "
                f"dsmoe apply {shlex.quote(str(self.checkout))}"
            )


@dataclass(frozen=True)
class Limits:
    """Seconds without a new iteration after which a run is ended: before the first one, after."""

    first: float
    later: float


@dataclass(frozen=True)
class LauncherEnd:
    """How a run ended: ``code`` of the launcher (0 is good) and, if it failed, the reason."""

    code: int
    reason: str | None


def run(
    job: Job,
    limits: Limits,
    on_iteration: Callable[[dict[str, Any]], None],
    on_note: Callable[[str], None],
    stop: StopSignals,
) -> LauncherEnd:
    """Run the launcher to its end; every new iteration is handed on as it is written, and every
    note of a process, once for all that say the same.

    All output goes to ``log.txt`` in the run folder. An interrupt, a time-out or an error here
    ends all the processes that were started before it goes on. Raises Interrupted.
    """
    job.check()
    iterations = IterationLog(job.run_dir / ITERATIONS)
    log = job.run_dir / LOG
    late = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.held())
        started = stack.enter_context(own_session(job.command(), job.environment(), log))
        seen, last = 0, time.monotonic()
        told: set[str] = set()
        while True:
            code = started.process.poll()
            _tell(started.output, told, on_note)
            for line in iterations.new_lines():
                seen, last = int(line["iteration"]), time.monotonic()
                on_iteration(line)
            if code is not None:
                break
            stop.check()
            late = _late(limits, seen, time.monotonic() - last)
            if late:
                break
            time.sleep(POLL_SECONDS)
    _tell(started.output, told, on_note)  # what came last is read by now
    if late:
        return LauncherEnd(1, f"{late}{hung(started.output.marks)} (see {log})")
    assert code is not None
    if code == 0:
        return LauncherEnd(0, None)
    return LauncherEnd(code, reason(code, started.output.marks, list(started.output.tail), log))


def _tell(output: Output, told: set[str], on_note: Callable[[str], None]) -> None:
    for mark in list(output.marks):
        if mark.kind == NOTE and mark.reason not in told:
            told.add(mark.reason)
            on_note(mark.reason)


def _late(limits: Limits, seen: int, waited: float) -> str | None:
    limit = limits.later if seen else limits.first
    if waited <= limit:
        return None
    after = f"after iteration {seen}" if seen else "and no iteration was finished"
    return (
        f"nothing happened for {limit:g} s {after}, a collective may hang; all processes were "
        "ended: --time-out allows more"
    )
