"""Run a function in N real processes with a process group, and bring their results back.

Starting Python, torch and DeepSpeed takes seconds, so the processes are forked from one that has
imported these (forker.py), and those of a number N are kept for the next call; a call that fails
ends them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from filelock import FileLock

HERE = Path(__file__).parent
SECONDS_BETWEEN_LOOKS = 0.2  # whether a process has ended
TIMEOUT = 600  # on a machine with other work a call takes ten times as long
_POOLS: dict[int, Pool] = {}


def run_ranks(processes: int, function: str, *arguments: Any) -> list[Any]:
    """What ``function(*arguments)`` of one of worker.py's modules returned in each process.

    Results are tensors and plain containers. A process that fails fails the test with its output.
    Where there are GPUs each process has its own, and the test is skipped where they are too few.
    """
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        pytest.skip(f"{processes} processes need a GPU each, and {gpus} are here")
    if processes not in _POOLS:
        _POOLS[processes] = Pool(processes)
    try:
        return _POOLS[processes].run(function, arguments)
    except BaseException:
        _POOLS.pop(processes).close()
        raise


class Pool:
    """N processes that wait for work in one process group."""

    def __init__(self, processes: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.here = Path(self._folder.name)
        self.calls = 0
        self.ranks = range(processes)
        for rank in self.ranks:
            os.mkfifo(self.here / f"calls{rank}")
        # Opened for reading too, because this must not wait for the reader.
        self._ends = [os.open(self.here / f"calls{rank}", os.O_RDWR) for rank in self.ranks]
        os.mkfifo(self.here / "done")  # a byte for each result
        self._done = os.open(self.here / "done", os.O_RDWR)
        self._ends.append(self._done)
        self._forker = forker()
        self._forker.fork(self.here, processes)

    def start(self, function: str, arguments: tuple[Any, ...]) -> None:
        self.calls += 1
        torch.save([function, *arguments], self.here / f"in{self.calls}")
        for end in self._ends[: len(self.ranks)]:
            os.write(end, f"{self.calls}\n".encode())

    def run(self, function: str, arguments: tuple[Any, ...]) -> list[Any]:
        self.start(function, arguments)
        outputs = [self.here / f"out{self.calls}-{rank}" for rank in self.ranks]
        deadline = time.monotonic() + TIMEOUT
        while not all(output.exists() for output in outputs):
            if self._one_ended() or time.monotonic() > deadline:
                time.sleep(0.5)  # the others say what they saw
                raise AssertionError(f"{function} failed\n{self.said()}")
            if select.select([self._done], [], [], SECONDS_BETWEEN_LOOKS)[0]:
                os.read(self._done, len(outputs))
        return [torch.load(output, map_location="cpu") for output in outputs]

    def _one_ended(self) -> bool:
        return not self._forker.alive() or not all(map(psutil.pid_exists, self.pids()))

    def pids(self) -> list[int]:
        """The processes that have started."""
        texts = [f.read_text() for f in self.here.glob("pid*")]
        return [int(text) for text in texts if text]

    def said(self) -> str:
        logs = sorted(self.here.glob("log*"))
        return "\n".join(f"{f.name}:\n{f.read_text(errors='replace')[-3000:]}" for f in logs)

    def close(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for end in self._ends:
            os.close(end)
        self._folder.cleanup()


class Forker:
    """The process whose children those of every pool are; it ends with the last test process.

    The processes of pytest-xdist share one, since each takes five seconds of processor time to
    start. Its environment is that of the test process that started it.
    """

    def __init__(self) -> None:
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}-{time.monotonic_ns()}")
        place = Path(tempfile.gettempdir()) / f"dsmoe-forker-{run}"
        place.mkdir(exist_ok=True)
        calls, number = place / "calls", place / "pid"
        self._started: subprocess.Popen | None = None
        with FileLock(f"{place}.lock"):
            self.pid = int(number.read_text()) if number.exists() else 0
            begun = self.alive()
            if not begun:
                calls.unlink(missing_ok=True)
                os.mkfifo(calls)
            # Opened for reading too, because this must not wait for the reader.
            self._calls = os.open(calls, os.O_RDWR)
            if not begun:
                command = [sys.executable, str(HERE / "forker.py"), str(place)]
                self._started = subprocess.Popen(command, stdin=subprocess.DEVNULL)
                self.pid = self._started.pid
                number.write_text(str(self.pid))

    def fork(self, folder: Path, processes: int) -> None:
        os.write(self._calls, f"{folder} {processes}\n".encode())

    def alive(self) -> bool:
        if self._started is not None:
            return self._started.poll() is None
        try:
            return self.pid > 0 and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@functools.lru_cache(maxsize=None)
def forker() -> Forker:
    return Forker()


@atexit.register
def close_all() -> None:
    """End the processes that wait, whose process groups have threads that wake all the time."""
    while _POOLS:
        _POOLS.popitem()[1].close()
