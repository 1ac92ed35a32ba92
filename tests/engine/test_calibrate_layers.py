"""dsmoe calibrate measures the model's own layers on a CPU, with what of them is products."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import dataclasses, sys, time
import torch
from dsmoe.benchmark.calibrate.clock import Clock
from dsmoe.benchmark.calibrate.layers import measure_layers
from dsmoe.benchmark.calibrate.shapes import CPU

small = dataclasses.replace(CPU, widths=(32,), tokens=(64,), length=32)
clock = Clock(sys.stdout, torch.device("cpu"), time.monotonic() + 60, 1)
measure_layers(clock, small)
clock.deadline = 0.0
measure_layers(clock, small)
"""


@pytest.mark.long
def test_layers_give_their_whole_and_its_parts(checkout: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # beside DeepSpeed's own lines; a calibration writes its rows to a file
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    *rows, late = map(json.loads, lines)
    ms = {row["name"]: row["ms"] for row in rows}
    assert set(ms) == {"whole", "products", "attention"}
    assert min(ms.values()) > 0 and ms["products"] + ms["attention"] < ms["whole"]
    assert {(row["width"], row["tokens"], row["count"]) for row in rows} == {(32, 64, 4)}
    assert "time for all measurements" in late["error"]
