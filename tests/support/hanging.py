"""Programs and packages that never answer, found before the real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: A program that hangs, and one whose child, which has its output, hangs.
HANGS, CHILD_HANGS = "exec sleep 60", "sleep 60; exit 1"


def program(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the shell script ``body`` first on PATH as ``name``."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return path


def package(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package before all others whose import does not end."""
    (folder / name).mkdir(parents=True)
    for file in ("__init__.py", "__main__.py"):
        (folder / name / file).write_text("import time; time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
