"""``--help`` answers at once on a fresh clone: no command needs a package to print it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support import ROOT

from dsmoe.cli import COMMANDS

SCRIPTS = ("apply_patch.py", "get_hostfiles.py")
LINES = [
    ["-m", "dsmoe", "--help"],
    *[["-m", "dsmoe", name, "--help"] for name in COMMANDS],
    *[[name, "--help"] for name in SCRIPTS],
]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_the_help_needs_no_package(line: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-S", *line],  # -S: without site-packages
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ") and not done.stderr
