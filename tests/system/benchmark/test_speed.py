"""make bench: its comparison on this machine, its table, its mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.records import failure, record

from dsmoe.benchmark.results import store
from dsmoe.benchmark.timing import speed


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--steps", "0"], "at least 1"), (["--nonsense"], "--help")]
)
def test_mistakes_are_one_line(arguments: list[str], words: str, capsys) -> None:
    assert speed.main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_the_table_says_what_was_run_and_what_failed(tmp_path: Path, capsys) -> None:
    for run in (record(), failure("out of memory")):
        store.append(tmp_path, run)
    speed.print_table(tmp_path)
    _, _, good, bad, empty, ran_on = capsys.readouterr().out.splitlines()
    assert re.match(r"\| smoke smoke, 2 process, \d+ x \d+ \|", good)
    assert "out of memory" in bad
    assert not empty
    assert ran_on == "on cpu, python 3"  # the records's machine and versions


@pytest.mark.slow
def test_the_fast_path_is_faster_here() -> None:
    """A process of its own, as `make bench` starts it: it ends its process group with itself."""
    command = [
        sys.executable,
        "-m",
        "dsmoe.benchmark.timing.speed",
        "--steps",
        "3",
        "--at-least",
        "1.2",
    ]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
