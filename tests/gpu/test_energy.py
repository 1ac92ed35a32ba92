"""The energy of a run against the power that the driver shows, sampled beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from support import ROOT

pytestmark = pytest.mark.gpu


def test_a_run_has_the_energy_that_sampled_power_adds_up_to(
    gpus: int, tmp_path: Path, checkout: Path
) -> None:
    """Watts times seconds within 10 %: the samples are of another sensor reading, every 50 ms."""
    if not gpus:
        pytest.skip("needs a GPU, and there is none")
    nvml = pytest.importorskip("pynvml")
    nvml.nvmlInit()
    uuid = torch.cuda.get_device_properties(0).uuid
    board = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    samples: list[tuple[float, float]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            samples.append((time.time(), nvml.nvmlDeviceGetPowerUsage(board) / 1000))

    watcher = threading.Thread(target=sample)
    watcher.start()
    command = [sys.executable, "-m", "dsmoe", "run", "1", "--suite", "tuned", "--steps", "6"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=400,
    )
    over.set()
    watcher.join()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "J a token" in done.stdout
    [line] = (tmp_path / "results_e2e.jsonl").read_text().splitlines()
    record = json.loads(line)
    # the busiest stretch of that length: the measured iterations are at full power
    seconds = sum(record["step_seconds"])
    most = 0.0
    for first, _ in samples:
        inside = [watts for at, watts in samples if first <= at < first + seconds]
        if samples[-1][0] >= first + seconds:
            most = max(most, sum(inside) / len(inside))
    assert record["energy_joules"] == pytest.approx(most * seconds, rel=0.1)
    tokens = 6 * record["case"]["global_batch_size"] * 1024
    assert record["joules_per_token"] == pytest.approx(record["energy_joules"] / tokens)
