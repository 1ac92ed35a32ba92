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


class Broken:
    """A stream that cannot be written to, for a reason that no lost reader has."""

    def write(self, text: str) -> int:
        raise OSError(errno.EISDIR, "Is a directory")

    def flush(self) -> None:
        pass


def test_another_failure_of_the_output_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    stream: Any = Broken()
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(OSError, match="Is a directory"), patient_output():
        print("something")
    assert sys.stdout is stream


def test_a_character_that_the_output_lacks_is_written_by_its_number() -> None:
    code = "from dsmoe.common.output import patient_output as patient\n"
    code += "with patient(): print('caf\\xe9')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "caf\\xe9\n"), done.stderr
