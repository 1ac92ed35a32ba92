"""SIGKILL while an export writes: the next export, and the next apply, need no other command."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from support.killed import run_until
from support.patch_project import Project, git, read_files

from dsmoe.common import files
from dsmoe.patchset import pending
from dsmoe.patchset.authoring import export, publish
from dsmoe.patchset.checkout import renewal
from dsmoe.patchset.checkout.records import Records

TRACED = {module.__file__ for module in (files, pending, publish, renewal)}


@pytest.fixture
def edited(project: Project, checkout: Path) -> Path:
    """An applied checkout with an edit of a patched file, a new and a removed overlay file."""
    assert project.main(checkout)[0] == 0
    (checkout / "lib/a.py").write_bytes((checkout / "lib/a.py").read_bytes() + b"an edit\n")
    (checkout / "lib/new/more.py").write_bytes(b"more = 1\n")
    (checkout / "lib/new/empty.py").unlink()
    return checkout


@pytest.mark.long
def test_killed_between_any_two_lines(project: Project, edited: Path, tmp_path: Path) -> None:
    kept, root = tmp_path / "kept", tmp_path / "root"
    shutil.copytree(edited, kept, symlinks=True)
    shutil.copytree(project.root, root, symlinks=True)
    wanted = read_files(edited)

    def again() -> None:
        for now, then in ((edited, kept), (project.root, root)):
            shutil.rmtree(now)
            shutil.copytree(then, now, symlinks=True)

    def action() -> None:
        project.main(edited, "--export")

    total = run_until(action, 0, TRACED)
    assert total > 100
    after = {p: p.read_bytes() for p in project.root.rglob("*") if p.is_file()}
    lines = random.Random(3).sample(range(1, total + 1), 9)
    for number, line in enumerate([*lines, total]):
        again()
        assert run_until(action, line, TRACED) == 0
        for args in (["--export"], []) if number % 3 else ([], ["--export"]):
            code, text = project.main(edited, *args)
            assert code == 0, (line, args, text)
            assert read_files(edited) == wanted
        assert {p: p.read_bytes() for p in project.root.rglob("*") if p.is_file()} == after
        assert project.main(edited, "--status")[0] == 0
        code, text = project.main(edited, "--revert")
        assert code == 0 and git(edited, "status", "--porcelain") == "", text


def stopped(project: Project, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that ends when the project's files are written."""

    def ends(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(export, "renew", ends)
        assert project.main(checkout, "--export")[0] == 130


def test_an_edit_after_it_is_exported_too(
    project: Project, edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(project, edited, monkeypatch)
    with (edited / "lib/new/more.py").open("a") as file:
        file.write("later = 2\n")
    code, text = project.main(edited, "--export")
    assert code == 0 and "stopped half-way: completed" in text, text
    assert (project.root / "overlay/lib/new/more.py").read_text().endswith("later = 2\n")
    assert project.main(edited, "--status")[0] == 0


def test_an_index_lock_of_the_killed_git(
    project: Project, edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(project, edited, monkeypatch)
    (edited / ".git/index.lock").write_bytes(b"")
    assert project.main(edited, "--export")[0] == 0
    (edited / ".git/index.lock").write_bytes(b"")  # somebody else's
    (edited / "lib/new/more.py").write_text("x = 3\n")
    code, text = project.main(edited, "--revert")
    assert code == 14 and "index.lock" in text, (code, text)


@pytest.mark.parametrize("what", ["series", "index"])
def test_a_note_that_fits_no_more_is_dropped(
    what: str, project: Project, edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(project, edited, monkeypatch)
    note = Records(edited / ".git/dsmoe").exported
    assert note.exists()
    if what == "series":  # as after git checkout in the project
        (project.root / "overlay/lib/new/more.py").write_text("x = 4\n")
        assert project.main(edited, "--lock")[0] == 0
    else:
        git(edited, "reset", "-q", "--hard")
    before = git(edited, "write-tree")
    project.main(edited, "--export")
    assert not note.exists()
    assert git(edited, "write-tree") == before
