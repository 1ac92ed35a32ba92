"""A git that never answers is ended after a limit of seconds, and named."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from support import hanging
from support.commands import dsmoe

from dsmoe.common.errors import EnvironmentProblem
from dsmoe.patchset import git as ours


def _hung_git(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    program = hanging.program(folder, "git", hanging.HANGS, monkeypatch)
    monkeypatch.setattr(ours, "QUICK_SECONDS", 0.5)
    return str(program)


def test_a_command_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.require_git()
    program = _hung_git(tmp_path, monkeypatch)
    with pytest.raises(EnvironmentProblem, match=r"git rev-parse did not end within 0.5 s") as said:
        ours.Git(tmp_path).run("rev-parse", "HEAD")
    assert program in str(said.value)


def test_gitpythons_import_has_one_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = _hung_git(tmp_path, monkeypatch)
    monkeypatch.delitem(ours.sys.modules, "git.cmd", raising=False)
    with pytest.raises(EnvironmentProblem, match=r"git did not end within 0.5 s") as said:
        ours.require_git()
    assert program in str(said.value)


def test_what_git_started_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper of git whose child has its output, on a machine without ps (a slim container)."""
    ours.require_git()
    for name in ("sh", "env", "sleep"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    program = _hung_git(tmp_path, monkeypatch)
    Path(program).write_text("#!/bin/sh\nsleep 40\nexit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    begin = time.monotonic()
    with pytest.raises(EnvironmentProblem, match=r"git rev-parse did not end within 0\.5 s"):
        ours.Git(tmp_path).run("rev-parse", "HEAD")
    assert time.monotonic() - begin < 30


def test_the_command_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _hung_git(tmp_path, monkeypatch)
    assert dsmoe("apply", tmp_path, "--status") == EnvironmentProblem.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(r"git\S* (rev-parse )?did not end within 0\.5 s", said)
