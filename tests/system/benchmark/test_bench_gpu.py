"""scripts/bench-gpu.sh: which cases it runs, and how it ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from support import ROOT

SCRIPT = ROOT / "scripts/bench-gpu.sh"
# A Python of a machine with some GPUs, whose case with 64 experts ends with a code.
PYTHON = """#!/usr/bin/env bash
case "$*" in
"-c "*) echo {gpus} ;;
*) echo "$*" >>{folder}/calls
   case "$*" in *"--num-experts 64"*) exit {code} ;; esac ;;
esac
"""


def bench(folder: Path, gpus: int, code: int) -> tuple[int, str, list[str]]:
    """Exit code, standard error, and what was run after ``-m dsmoe``."""
    python = folder / "python"
    python.write_text(PYTHON.format(gpus=gpus, folder=folder, code=code))
    python.chmod(0o755)
    command = ["bash", str(SCRIPT), str(python), str(folder / "results")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    calls = folder / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done.returncode, done.stderr, [line.split("-m dsmoe ", 1)[1] for line in lines]


@pytest.mark.parametrize("gpus", [1, 2])
def test_every_case_and_then_the_tables(gpus: int, tmp_path: Path) -> None:
    code, error, calls = bench(tmp_path, gpus, 0)
    assert (code, error) == (0, "")
    assert len(calls) == 5 + (gpus == 2) + 2
    assert any(call.startswith("run 2 --suite tuned") for call in calls) == (gpus == 2)
    assert calls[-2].startswith("bench --table")
    assert calls[-1].startswith("profile 1")


def test_a_case_that_fails_does_not_end_it(tmp_path: Path) -> None:
    code, error, calls = bench(tmp_path, 2, 1)
    assert code == 1
    assert error == "error: a case failed; its reason is above\n"
    assert calls[-1].startswith("profile 1")


def test_an_interrupt_ends_it(tmp_path: Path) -> None:
    code, _, calls = bench(tmp_path, 2, 130)
    assert code == 130
    assert "--num-experts 64" in calls[-1]


def test_without_a_gpu(tmp_path: Path) -> None:
    code, error, calls = bench(tmp_path, 0, 0)
    assert (code, calls) == (8, [])
    assert error.startswith("error: no GPU is here")
