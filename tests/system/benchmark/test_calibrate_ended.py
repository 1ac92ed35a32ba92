"""dsmoe calibrate that is ended leaves no process and no file, and another's file as it was."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import ROOT


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left(number: signal.Signals, tmp_path: Path, checkout: Path) -> None:
    mine = tmp_path / "here.json.rows"
    mine.write_text("mine")
    started = subprocess.Popen(
        [sys.executable, "-m", "dsmoe", "calibrate", "--processes", "1", "--output", "here.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    children: list[psutil.Process] = []
    end = time.monotonic() + 300
    while not children and time.monotonic() < end:
        for child in psutil.Process(started.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # git's, which has ended
                if "dsmoe.benchmark.calibrate.measuring_process" in child.cmdline():
                    children.append(child)
        time.sleep(0.2)
    assert children
    started.send_signal(number)
    said = started.communicate(timeout=300)[1]
    assert started.returncode == 128 + number
    assert said.splitlines()[-1].startswith(f"error: interrupted by {number.name}")
    assert not any(child.is_running() for child in children)
    assert [path.name for path in tmp_path.iterdir()] == ["here.json.rows"]
    assert mine.read_text() == "mine"
