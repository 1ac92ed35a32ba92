"""A command that lacks a package starts again in .venv, or says in one line what to install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

# -S: without site-packages, as a Python that has none of what the project needs.
COMMANDS = [
    ["apply_patch.py", "PATH"],
    ["-m", "dsmoe", "plot", "results", "--output", "figure"],
]


def compiled_by_others(folder: str, names: list[str]) -> list[str]:
    """Files of ``__pycache__`` that this Python does not read."""
    own = f".{sys.implementation.cache_tag}."
    return [name for name in names if name.endswith(".pyc") and own not in name]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("dsmoe", "overlay"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=compiled_by_others)
    shutil.copy2(ROOT / "apply_patch.py", tmp_path)
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(project: Path, command: list[str]) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-S", *command],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_it_says_what_is_missing_in_one_line(project: Path, command: list[str]) -> None:
    done = run(project, command)
    assert done.returncode == 8
    [line] = done.stderr.splitlines()
    assert "cannot import" in line and "scripts/setup.sh" in line


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.orig_argv is new in Python 3.10")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_it_starts_again_in_the_environment(project: Path, command: list[str]) -> None:
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "again: $*"\n')
    python.chmod(0o755)
    done = run(project, command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"again: -S {' '.join(command)}"


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.orig_argv is new in Python 3.10")
def test_a_half_made_environment_is_named(project: Path) -> None:
    """Its set-up was stopped, so that Python lacks the package as well."""
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(Path(sys.executable).resolve())
    done = run(project, COMMANDS[0])
    assert done.returncode == 8, done.stdout
    [line] = done.stderr.splitlines()
    assert f"{project}/.venv is half made" in line and "scripts/setup.sh" in line


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.orig_argv is new in Python 3.10")
def test_the_version_looks_into_a_half_made_environment(project: Path) -> None:
    for name in ("patch", "bases"):
        shutil.copytree(ROOT / name, project / name)
    venv = project / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(Path(sys.executable).resolve())
    (venv / ".dsmoe-started").touch()  # as scripts/setup.sh marks it
    done = run(project, ["-m", "dsmoe", "--version"])
    assert done.returncode == 0, done.stderr
    assert f"environment {venv} is half made: run scripts/setup.sh" in done.stdout
    assert "torch not installed" in done.stdout
    (venv / ".dsmoe-started").unlink()
    done = run(project, ["-m", "dsmoe", "--version"])
    assert f"environment {venv}\n" in done.stdout
