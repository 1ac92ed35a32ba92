"""Mistakes in a command line are one line, found before anything is installed or built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.commands import dsmoe

from dsmoe import cli


@pytest.mark.parametrize("arguments", [["x"], [], ["1", "--nonsense"], ["1", "--output", ""]])
def test_the_benchmark_script_installs_nothing_for_a_mistake(
    arguments: list[str], tmp_path: Path
) -> None:
    python = tmp_path / "python"  # one that may parse the arguments, and nothing else
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] || exit 99\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        [ROOT / "run_deepspeed_benchmark.sh", *arguments],
        env={**os.environ, "DSMOE_PYTHON": str(python)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["apply", ""], ["run", "1", "--output", ""]])
def test_an_empty_name_is_a_mistake(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dsmoe(*command) == 2
    assert "the name is empty" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_is_at_most_80_columns_wide(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert dsmoe(name, "--help") == 0
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []
