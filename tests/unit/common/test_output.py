"""A command whose reader has left ends as if it had stayed: no traceback, its own exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Any

import pytest
from support import ROOT

from dsmoe.common.output import patient_output

COMMANDS = [
    (["-m", "dsmoe", "--version"], 0),
    (["-m", "dsmoe", "nonsense"], 2),
    (["get_hostfiles.py", "--hosts", "10.0.0.1:8", "--dry-run"], 0),
    (["get_hostfiles.py", "--hosts", "10.0.0.1"], 16),
    (["-m", "dsmoe", "run", "2", "--suite", "smoke", "--dry-run"], 0),
    (["-m", "dsmoe", "report", "absent"], 10),
    (["apply_patch.py", "--help"], 0),
    (["-m", "dsmoe", "converge", "--help"], 0),
    (["-m", "dsmoe", "converge", "--steps", "none"], 2),
    (["-m", "dsmoe", "bench", "--steps", "0"], 2),
    (["-m", "dsmoe", "profile", "1", "--suite", "tuned", "--all"], 2),
]


@pytest.mark.parametrize(("command", "code"), COMMANDS, ids=lambda value: str(value)[:40])
def test_nobody_reads(command: list[str], code: int) -> None:
    """Standard output is a pipe that was closed before the command began."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writer)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize(("command", "code"), COMMANDS[:4], ids=lambda value: str(value)[:40])
def test_there_is_no_output(command: list[str], code: int) -> None:
    """``>&-``: standard output is closed, and Python has none."""
    words = [sys.executable, *command]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_another_failure_of_the_output_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

        def flush(self) -> None:
            pass

    stream: Any = Full()
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(OSError, match="Invalid"), patient_output():
        print("something")
    assert sys.stdout is stream
