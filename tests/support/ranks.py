"""Run a function in N real processes with a process group, and bring their results back.

Starting Python, torch and DeepSpeed takes seconds, so the processes of a number N are kept for the
next call; a call that fails ends them.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
TIMEOUT = 240
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
        self.workers = [self._start(rank, processes) for rank in range(processes)]

    def _start(self, rank: int, processes: int) -> subprocess.Popen:
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        with (self.here / f"log{rank}").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), str(self.here)],
                env={**os.environ, **place},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    def start(self, function: str, arguments: tuple[Any, ...]) -> None:
        self.calls += 1
        torch.save([function, *arguments], self.here / f"in{self.calls}")
        for worker in self.workers:
            worker.stdin.write(f"{self.calls}\n".encode())
            worker.stdin.flush()

    def run(self, function: str, arguments: tuple[Any, ...]) -> list[Any]:
        self.start(function, arguments)
        outputs = [self.here / f"out{self.calls}-{rank}" for rank in range(len(self.workers))]
        deadline = time.monotonic() + TIMEOUT
        while not all(output.exists() for output in outputs):
            if any(w.poll() is not None for w in self.workers) or time.monotonic() > deadline:
                time.sleep(0.5)  # the others say what they saw
                raise AssertionError(f"{function} failed\n{self.said()}")
            time.sleep(0.01)
        return [torch.load(output, map_location="cpu") for output in outputs]

    def said(self) -> str:
        logs = [self.here / f"log{rank}" for rank in range(len(self.workers))]
        codes = [worker.poll() for worker in self.workers]
        text = "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
        return f"exit codes {codes}\n{text}"

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
            worker.stdin.close()
        self._folder.cleanup()


@atexit.register
def _close_all() -> None:
    while _POOLS:
        _POOLS.popitem()[1].close()
