"""A Python or a torch that cannot work is refused at start, in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from support import ROOT

from dsmoe.common.packages import requires

OLD = ["2.7", "3.6", "3.7"]
COMMANDS = [
    ["apply_patch.py", "PATH"],
    ["get_hostfiles.py"],
    ["-m", "dsmoe", "--version"],
    ["-m", "dsmoe", "run", "1"],
    ["-m", "dsmoe", "check"],
    ["-m", "dsmoe", "plot", "results"],
    ["-m", "dsmoe", "report", "results"],
]


def interpreter(version: str) -> str | None:
    """A Python of that version which starts: pyenv's, else on PATH (there may be a shim alone)."""
    versions = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))) / "versions"
    found = [str(path / "bin" / "python") for path in versions.glob(f"{version}.*")]
    for name in [*found, shutil.which(f"python{version}")]:
        if name and subprocess.run([name, "-c", ""], capture_output=True).returncode == 0:
            return name
    return None


@pytest.mark.parametrize("version", OLD)
def test_an_older_python_is_told_so(version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    for command in COMMANDS:
        done = subprocess.run(
            [python, *command], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 8, (command, done.stderr)
        [line] = done.stderr.splitlines()
        assert f"this is Python {version}; expected 3.8 or later" in line
    done = subprocess.run(
        ["./run_deepspeed_benchmark.sh", "1"],
        cwd=ROOT,
        env={**environment, "DSMOE_PYTHON": python},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 8
    [line] = done.stderr.splitlines()
    assert f"is Python {version}" in line and "expected Python 3.9 to 3.13" in line


def test_the_oldest_python_that_works(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 0))
    requires.check_python("here")
    monkeypatch.setattr(sys, "version_info", (3, 7, 16))
    with pytest.raises(SystemExit) as caught:
        requires.check_python("here")
    assert caught.value.code == 8
    assert capsys.readouterr().err.startswith("here: this is Python 3.7; expected 3.8 or later")


@pytest.mark.parametrize("version", ["1.9.1+cpu", "0.4", "1.4.0a0", "1"])
def test_an_older_torch_is_told_so(version: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """By a run before it does anything, and by the environment check."""
    from dsmoe import cli
    from dsmoe.benchmark.preflight import local_checks

    cuda = types.SimpleNamespace(device_count=lambda: 0)
    old = types.SimpleNamespace(__version__=version, cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", old)
    assert cli.main(["run", "1", "--suite", "smoke"]) == 8
    [line] = capsys.readouterr().err.splitlines()
    assert f"torch {version} is too old; expected 1.10 or later" in line
    [check] = local_checks.torch_checks()
    assert check.state == "FAIL" and "too old" in check.found


@pytest.mark.parametrize("version", ["1.10", "1.10.2+cu102", "2.13.0+cpu", "2.0.0a0+git12"])
def test_a_torch_that_may_work_passes(version: str) -> None:
    assert requires.torch_problem(version) is None
