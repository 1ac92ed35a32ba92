"""scripts/setup.sh and the packages for Hopper: a pip that fails is asked once, not every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

# A Python whose pip has no packages, and that lacks quack.
PYTHON = """#!/usr/bin/env bash
case "$*" in
*"-m pip"*) echo "$*" >>{folder}/pip; exit 1 ;;
"- "*requirements-hopper.txt) exit 1 ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with a Hopper GPU, as far as the script asks."""
    for name, text in (
        ("python3", PYTHON.format(folder=tmp_path, python=sys.executable)),
        ("nvidia-smi", "#!/bin/sh\necho 9.0\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DSMOE_PYTHON": f"{tmp_path}/python3",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }


def setup(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts/setup.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_pip_that_fails_is_asked_once(machine: dict[str, str], tmp_path: Path) -> None:
    first = setup(machine)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == f"{tmp_path}/python3"
    assert "pip could not install them" in first.stderr
    second = setup(machine)
    assert second.returncode == 0
    [marker] = (tmp_path / "cache/dsmoe").iterdir()
    assert f"to try again now: rm {marker}" in second.stderr
    assert len((tmp_path / "pip").read_text().splitlines()) == 1
    os.utime(marker, (0, 0))  # days later
    assert setup(machine).returncode == 0
    assert len((tmp_path / "pip").read_text().splitlines()) == 2


@pytest.mark.parametrize(("choice", "asked"), [("all", True), ("nccl", True), ("cublas", False)])
def test_the_variable_decides(
    choice: str, asked: bool, machine: dict[str, str], tmp_path: Path
) -> None:
    assert setup({**machine, "DSMOE_KERNELS": choice}).returncode == 0
    assert (tmp_path / "pip").exists() == asked
