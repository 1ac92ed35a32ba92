"""A command in a session of its own, its output read as it comes, all of it gone afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Iterator

import psutil

from dsmoe.benchmark.run.marks import FAILED, Mark, parse_mark
from dsmoe.benchmark.run.reasons import by_launcher
from dsmoe.common.errors import EnvironmentProblem

TERM_SECONDS = 5
KILL_SECONDS = 10
TAIL_LINES = 400


class Output(threading.Thread):
    """Copies what the processes print to the file ``log`` and keeps the last lines and the marks.

    ``tail`` also has the lines before the last ones in which a process or the launcher says why
    it failed: the others' tracebacks may be long.

    The output goes through a pipe and not straight to the file, so that the reason of a failure
    is known even where the disk is full: then the copy has gaps, and ``complete`` is False.
    """

    def __init__(self, pipe: IO[bytes], log: Path) -> None:
        super().__init__(daemon=True)
        self._last: deque[str] = deque(maxlen=TAIL_LINES)
        self._kept: list[str] = []
        self.marks: list[Mark] = []
        self.complete = True
        self._pipe = pipe
        self._log = log
        self.start()

    def run(self) -> None:
        try:
            file = self._log.open("wb", buffering=0)
        except OSError:
            file, self.complete = None, False
        for line in self._pipe:
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            self._keep(text)
            mark = parse_mark(text)
            if mark is not None:
                self.marks.append(mark)
            if file is not None:
                try:
                    file.write(line)
                except OSError:
                    self.complete = False
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    @property
    def tail(self) -> list[str]:
        return [*self._kept, *self._last]

    def _keep(self, text: str) -> None:
        if len(self._last) == TAIL_LINES and len(self._kept) < TAIL_LINES:
            oldest = self._last[0]
            mark = parse_mark(oldest)
            if by_launcher(oldest) or (mark is not None and mark.kind == FAILED):
                self._kept.append(oldest)
        self._last.append(text)


class Started:
    """A running command: ``process`` and what it has printed, ``output``."""

    def __init__(self, process: subprocess.Popen[bytes], output: Output) -> None:
        self.process = process
        self.output = output

    def poll(self) -> int | None:
        """The command's exit code, negative for a signal; None while it runs."""
        return self.process.poll()


@contextlib.contextmanager
def own_session(args: list[str], env: dict[str, str], log: Path) -> Iterator[Started]:
    """Run ``args``, without a shell; at the end of the block no process of its session is left.

    Its standard input is a pipe that stays open for the length of the block: a process that reads
    the end of it knows that this one is gone. Raises EnvironmentProblem where the command cannot
    be started.
    """
    with session(args, env, subprocess.PIPE) as process:
        assert process.stdout is not None
        output = Output(process.stdout, log)
        try:
            yield Started(process, output)
        finally:
            end_session(process.pid)
            process.wait()
            output.join(timeout=TERM_SECONDS)


@contextlib.contextmanager
def session(args: list[str], env: dict[str, str], out: int) -> Iterator[subprocess.Popen[bytes]]:
    """As :func:`own_session`, with all that the command prints going to the file number ``out``."""
    try:
        process = subprocess.Popen(
            args,
            env=env,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise EnvironmentProblem(
            f"{args[0]}: cannot be started: {error.strerror}; expected the program that starts "
            "the training processes"
        ) from error
    assert process.stdin is not None
    try:
        yield process
    finally:
        end_session(process.pid)
        process.wait()
        process.stdin.close()


def end_session(leader: int) -> list[int]:
    """End every process of the session that ``leader`` leads; the ids of those that would not go.

    SIGTERM first, SIGKILL after TERM_SECONDS: the whole takes at most TERM_SECONDS + KILL_SECONDS.
    A stopped process keeps SIGTERM waiting, SIGKILL not.
    """
    for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        deadline = time.monotonic() + seconds
        sent: set[int] = set()
        while time.monotonic() < deadline:
            alive = session_members(leader)
            if not alive:
                return []
            for pid in alive:
                # SIGTERM once each; SIGKILL again, for what was forked in the meantime.
                if pid not in sent or number == signal.SIGKILL:
                    sent.add(pid)
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
            time.sleep(0.1)
    return session_members(leader)


def session_members(leader: int) -> list[int]:
    """The ids of the session's processes that run or are stopped; dead ones do not count."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(pid) == leader and psutil.Process(pid).status() not in (
                psutil.STATUS_ZOMBIE,
                psutil.STATUS_DEAD,
            ):
                found.append(pid)
    return found
