"""The fast path against the reference path on this machine, for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_fast_path_is_faster_here(checkout: Path) -> None:
    """A process of its own, as `make bench` starts it: it ends its process group with itself."""
    command = [sys.executable, "-m", "dsmoe", "bench", "--steps", "3", "--at-least", "1.2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
