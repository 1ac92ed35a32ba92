"""Run a function in N real processes with a process group, and bring their results back."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
TIMEOUT = 240


def run_ranks(processes: int, function: str, *arguments: Any, env: dict | None = None) -> list[Any]:
    """What ``scenarios.<function>(*arguments)`` returned in each of ``processes`` processes.

    Results are tensors and plain containers. A process that fails fails the test with its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        torch.save(list(arguments), here / "in")
        started = [_start(here, rank, processes, function, env) for rank in range(processes)]
        deadline = time.monotonic() + TIMEOUT
        try:
            while any(p.poll() is None for p in started):
                if any(p.poll() for p in started) or time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            codes = [p.poll() for p in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        if any(code != 0 for code in codes):
            said = "\n".join((here / f"log{r}").read_text()[-3000:] for r in range(processes))
            raise AssertionError(f"{function}: exit codes {codes}\n{said}")
        return [torch.load(here / f"out{rank}") for rank in range(processes)]


def _start(
    here: Path, rank: int, processes: int, function: str, env: dict | None
) -> subprocess.Popen:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        **(env or {}),
    }
    with (here / f"log{rank}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), str(here), function],
            env=environment,
            stdout=log,
            stderr=log,
        )
