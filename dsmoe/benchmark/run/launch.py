"""Start a run through its launcher, watch it, and end it."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from typing import Any, Callable

from dsmoe.benchmark.launchers.deepspeed_runner import LOCAL
from dsmoe.benchmark.launchers.interface import Launcher
from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.run.folder import ITERATIONS, LOG, IterationLog
from dsmoe.benchmark.run.marks import NOTE
from dsmoe.benchmark.run.processes import Output
from dsmoe.benchmark.run.reasons import hung
from dsmoe.common.errors import EnvironmentProblem, UsageError
from dsmoe.common.interrupts import StopSignals

POLL_SECONDS = 0.1


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
    launcher: Launcher = LOCAL,
) -> LauncherEnd:
    """Run the launcher to its end; every new iteration is handed on as it is written, and every
    note of a process, once for all that say the same.

    All output goes to ``log.txt`` in the run folder. An interrupt, a time-out or an error here
    ends all the processes that were started before it goes on. Raises Interrupted.
    """
    launcher.check(job)
    iterations = IterationLog(job.run_dir / ITERATIONS)
    log = job.run_dir / LOG
    late = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.held())
        started = stack.enter_context(launcher.start(job, log))
        seen, last = 0, time.monotonic()
        told: set[str] = set()
        while True:
            code = started.poll()
            _tell(started.output, told, on_note)
            for line in iterations.new_lines():
                seen, last = int(line["iteration"]), time.monotonic()
                on_iteration(line)
            if code is not None:
                if code and launcher.ends_with_processes:
                    stop.forget()  # the signal that comes now only follows from this
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
    return LauncherEnd(code, launcher.reason(code, started.output, log))


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
