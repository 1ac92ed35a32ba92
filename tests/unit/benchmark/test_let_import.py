"""The project's environment imports the project's own checkout, and nobody else's is touched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dsmoe.benchmark.run import patched_deepspeed


@pytest.mark.parametrize(
    ("environment", "checkout", "written"),
    [
        (".venv", "build/DeepSpeed", True),
        (".venv", "build/DeepSpeed-0.5.4", False),
        ("other", "build/DeepSpeed", False),
    ],
)
def test_only_the_projects_own(
    environment: str, checkout: str, written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / environment / "packages"
    packages.mkdir(parents=True)
    (tmp_path / checkout).mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / environment))
    monkeypatch.setattr(patched_deepspeed, "project_root", lambda: tmp_path)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"purelib": str(packages)})
    patched_deepspeed.let_import(tmp_path / checkout)
    lines = [path.read_text() for path in packages.iterdir()]
    assert lines == ([f"{tmp_path / checkout}\n"] if written else [])
