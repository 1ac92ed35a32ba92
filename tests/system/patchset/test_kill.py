"""SIGKILL at any moment: the next run names the state and reaches exactly one of the two trees."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

import pytest
from support.killed import run_until
from support.patch_project import BASE_FILES, Project, git, read_files, result_files

from dsmoe.common import files
from dsmoe.common.errors import LocalChanges
from dsmoe.patchset.checkout import actions, lock, move, records
from dsmoe.patchset.checkout.state import describe

TRACED = {module.__file__ for module in (move, lock, records, files)}


def finish(project: Project, checkout: Path, forwards: bool, quiet) -> None:
    """The next run: to the applied or to the pristine tree, exactly, with no traces left."""
    state = describe(checkout, project.bases)
    assert state.name in ("pristine", "applied", "partly-applied"), state
    assert state.edited == []
    if forwards:
        actions.apply(checkout, project.bases, quiet)
        assert read_files(checkout) == result_files()
        assert git(checkout, "write-tree") == git(project.upstream, "rev-parse", "main^{tree}")
    else:
        actions.revert(checkout, project.bases, quiet)
        assert read_files(checkout) == BASE_FILES
        assert git(checkout, "status", "--porcelain") == ""
    assert describe(checkout, project.bases).name == ("applied" if forwards else "pristine")
    assert not (checkout / ".git/dsmoe/journal.json").exists()
    assert not (checkout / ".git/index.lock").exists()


@pytest.mark.parametrize(
    "direction", ["apply", *(pytest.param(d, marks=pytest.mark.long) for d in ("revert", "finish"))]
)
def test_killed_between_any_two_lines(
    direction: str, template: Project, tmp_path: Path, quiet
) -> None:
    start = template.clone(tmp_path / "start")
    if direction != "apply":
        actions.apply(start, template.bases, quiet)
    if direction == "finish":  # a mixed state, so each path is written on its own
        git(start, "checkout", "HEAD", "--", "lib/a.py", "lib/data.bin", "lib/old.py")
    command = actions.revert if direction == "revert" else actions.apply
    checkout = tmp_path / "checkout"

    def action() -> None:
        command(checkout, template.bases, quiet)

    shutil.copytree(start, checkout, symlinks=True)
    git(checkout, "update-index", "-q", "--refresh")
    total = run_until(action, 0, TRACED)
    assert total > 100
    names = set()
    lines = random.Random(direction).sample(range(1, total + 1), 4)
    for number, line in enumerate(lines + [total]):
        shutil.rmtree(checkout)
        shutil.copytree(start, checkout, symlinks=True)
        assert run_until(action, line, TRACED) == 0
        names.add(describe(checkout, template.bases).name)
        finish(template, checkout, number % 2 == 0, quiet)
    # git's part is one step for these kills; a mixed start stays partly applied until the end.
    assert ("partly-applied" in names) == (direction == "finish")


@pytest.fixture
def shim(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment in which ``git read-tree -m -u`` (and checkout-index) runs a script."""
    real = shutil.which("git")

    def make(script: str) -> dict[str, str]:
        folder = tmp_path / "shim"
        folder.mkdir(exist_ok=True)
        body = f'case "$*" in *"read-tree -m -u"*|*checkout-index*) {script};; esac\n'
        (folder / "git").write_text(f'#!/bin/sh\ngit={real}\n{body}exec "$git" "$@"\n')
        (folder / "git").chmod(0o755)
        return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    return make


@pytest.fixture
def large(project: Project) -> Project:
    """The project with a large overlay file, written after all others."""
    (project.root / "overlay/lib/new/zz.bin").write_bytes(b"x" * 200_000)
    return project


def test_git_killed_in_the_midst(large: Project, tmp_path: Path, shim, quiet) -> None:
    """git dies of a file size limit with a torn file and its index.lock; then we die too."""
    env = shim('(ulimit -f 100; exec "$git" "$@"); kill -9 $PPID; exit 1')
    for forwards in (True, False):
        checkout = large.clone(tmp_path / f"c{forwards}")
        assert large.main(checkout, "--lock")[0] == 0
        assert large.run(checkout, env=env).returncode == -signal.SIGKILL
        assert (checkout / ".git/index.lock").exists()
        torn = checkout / "lib/new/zz.bin"
        assert 0 < torn.stat().st_size < 200_000
        done = large.run(checkout, "--status")
        assert done.returncode == 23 and "partly applied" in done.stdout
        if forwards:  # a second kill, on the way to the end
            assert large.run(checkout, env=env).returncode == -signal.SIGKILL
            assert large.run(checkout, "--status").returncode == 23
        args = [] if forwards else ["--revert"]
        done = large.run(checkout, *args)
        assert done.returncode == 0, done.stderr
        if forwards:
            assert "stopped half-way" in done.stdout
            assert read_files(checkout) == {**result_files(), "lib/new/zz.bin": b"x" * 200_000}
        else:
            assert read_files(checkout) == BASE_FILES
            assert git(checkout, "status", "--porcelain") == ""
        assert not (checkout / ".git/index.lock").exists()


def test_an_edit_after_a_kill_is_kept(large: Project, checkout: Path, shim, quiet) -> None:
    assert large.main(checkout, "--lock")[0] == 0
    env = shim('(ulimit -f 100; exec "$git" "$@"); kill -9 $PPID; exit 1')
    assert large.run(checkout, env=env).returncode == -signal.SIGKILL
    (checkout / "lib/new/zz.bin").write_bytes(b"mine\n")
    (checkout / "docs/read.txt").write_bytes(b"mine too\n")
    before = read_files(checkout)
    for command in (actions.apply, actions.revert):
        with pytest.raises(LocalChanges) as caught:
            command(checkout, large.bases, quiet)
        assert caught.value.details == ["lib/new/zz.bin: untracked file in the way"]
        assert read_files(checkout) == before
    (checkout / "lib/new/zz.bin").unlink()
    actions.revert(checkout, large.bases, quiet)
    assert read_files(checkout) == {**BASE_FILES, "docs/read.txt": b"mine too\n"}


def test_the_lock_outlives_a_killed_applier(
    template: Project, checkout: Path, tmp_path: Path, shim, quiet
) -> None:
    go = tmp_path / "go"
    env = shim(f'kill -9 $PPID; while ! [ -e {go} ]; do sleep 0.1; done; exec "$git" "$@"')
    first = subprocess.Popen(template.command(checkout), env=env, stdout=subprocess.DEVNULL)
    assert first.wait(timeout=300) == -signal.SIGKILL
    # its git still waits and will then write
    second = subprocess.Popen(template.command(checkout), stdout=subprocess.PIPE, text=True)
    assert any("waiting for it" in line for line in second.stdout)
    assert read_files(checkout) == BASE_FILES
    go.touch()
    assert second.wait(timeout=300) == 0
    assert read_files(checkout) == result_files()
    time.sleep(1.0)
    assert read_files(checkout) == result_files()
    assert describe(checkout, template.bases).name == "applied"


@pytest.mark.long
def test_killed_with_all_its_children_at_random(template: Project, tmp_path: Path, quiet) -> None:
    dice = random.Random(5)
    for number in range(6):
        checkout = template.clone(tmp_path / f"c{number}")
        process = subprocess.Popen(
            template.command(checkout), stdout=subprocess.PIPE, start_new_session=True
        )
        process.stdout.read(1)  # the first line: it has begun
        time.sleep(dice.uniform(0, 0.25))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        finish(template, checkout, number % 2 == 0, quiet)
