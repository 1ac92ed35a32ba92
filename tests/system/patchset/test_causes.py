"""Checkouts whose files differ though nobody edited them, and a series that was committed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.patch_project import (
    BASE_FILES,
    Project,
    git,
    read_files,
    result_files,
    snapshot,
    sub,
)


def follow(checkout: Path, text: str, start: str) -> None:
    """Run the git commands that a message gives after ``start``."""
    [line] = [line for line in text.splitlines() if start in line]
    for command in line.split(start)[1].split(": ", 1)[1].split("; "):
        assert command.startswith("git "), line
        git(checkout, *command.split()[1:])


def test_a_clone_with_converted_line_ends(project: Project, tmp_path: Path) -> None:
    checkout = project.clone(tmp_path / "converted", "-c", "core.autocrlf=true")
    before = read_files(checkout)
    assert before["lib/a.py"].startswith(b"line 0\r\n")
    code, said = project.main(checkout, "--status")
    assert code == 22 and "edited: " not in said
    [cause] = [line for line in said.splitlines() if "have line ends" in line]
    assert re.search(r"\d+ files have line ends converted by git \(core.autocrlf\)", cause)
    code, text = project.main(checkout)
    assert code == 7 and len(text.splitlines()) <= 3 and "core.autocrlf" in text
    assert read_files(checkout) == before
    follow(checkout, text, "byte for byte")
    assert project.main(checkout)[0] == 0
    assert read_files(checkout) == result_files()


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("where", ["lib/a.py", "docs/read.txt"])
def test_an_edit_survives_what_the_refusal_advises(
    where: str, staged: bool, project: Project, tmp_path: Path
) -> None:
    """The edit is in a file of the series, or in one that the series does not touch."""
    checkout = project.clone(tmp_path / "converted", "-c", "core.autocrlf=true")
    path = checkout / where
    path.write_bytes(path.read_bytes() + b"my edit\r\n")
    (checkout / "lib/mine.py").write_bytes(b"untracked\n")
    if staged:
        git(checkout, "add", where)
    code, said = project.main(checkout, "--status")
    assert code == 22 and f"edited: {where}" in said
    assert said.count("edited: ") == 2 and said.count("have line ends") == 1
    code, text = project.main(checkout)
    assert code == 7 and "keeps your edits of 2 files" in text
    follow(checkout, text, "byte for byte")
    content = BASE_FILES[where]
    assert isinstance(content, bytes)
    assert path.read_bytes() == content + b"my edit\n"
    assert (checkout / "lib/mine.py").read_bytes() == b"untracked\n"
    code, text = project.main(checkout)
    assert code == (7 if where == "lib/a.py" else 0) and "have line ends" not in text


@pytest.mark.parametrize("cone", [True, False])
def test_a_sparse_checkout_is_named(cone: bool, project: Project, checkout: Path) -> None:
    kind = "--cone" if cone else "--no-cone"
    git(checkout, "sparse-checkout", "set", kind, "docs")
    assert not (checkout / "lib").exists()
    before = snapshot(checkout)
    code, said = project.main(checkout, "--status")
    assert code == 20 and "sparse checkout" in said and "edited: " not in said
    assert snapshot(checkout) == before
    for args in (["--check"], []):
        code, text = project.main(checkout, *args)
        assert code == 7 and "sparse checkout leaves out" in text and "deleted" not in text
        assert len(text.splitlines()) <= 3
    assert not (checkout / "lib").exists()
    follow(checkout, text, "widen it")
    assert project.main(checkout)[0] == 0
    found = read_files(checkout)
    assert {path: found.get(path) for path in result_files() if path.startswith("lib/")} == {
        path: content for path, content in result_files().items() if path.startswith("lib/")
    }
    assert project.main(checkout, "--status")[0] == 0
    assert project.main(checkout, "--revert")[0] == 0


def test_a_sparse_checkout_that_has_the_files(project: Project, checkout: Path) -> None:
    git(checkout, "sparse-checkout", "set", "--cone", "lib", "bin")
    assert project.main(checkout)[0] == 0
    assert project.main(checkout, "--status")[0] == 0
    assert project.main(checkout, "--revert")[0] == 0
    assert git(checkout, "status", "--porcelain") == ""


@pytest.fixture
def committed(project: Project, checkout: Path) -> Path:
    assert project.main(checkout)[0] == 0
    git(checkout, "commit", "-qm", "the series")
    return checkout


def test_a_committed_series_is_applied(project: Project, committed: Path) -> None:
    before = snapshot(committed)
    code, text = project.main(committed, "--status", "--json")
    data = json.loads(text)
    assert (code, data["outcome"]) == (0, "applied") and "committed" in data["state"]["label"]
    assert data["state"]["base"] == "syn" and data["state"]["edited"] == []
    lock = json.loads(project.base.result_file.read_text())
    assert data["state"]["result"] == lock["trees"]
    for args in ([], ["--check"]):
        code, text = project.main(committed, *args)
        assert code == 0 and "already applied" in text
    assert snapshot(committed) == before
    git(committed, "checkout", "-q", "-b", "more")
    git(committed, "commit", "-q", "--allow-empty", "-m", "another")
    (committed / "docs/read.txt").write_bytes(b"mine\n")
    (committed / "lib/a.py").unlink()
    git(committed, "add", "lib/a.py")
    code, text = project.main(committed, "--status")
    assert code == 21 and "edited: docs/read.txt" in text and "edited: lib/a.py" in text


def test_what_needs_the_base_says_how_to_take_the_commit_back(
    project: Project, committed: Path
) -> None:
    path = committed / "lib/new/crlf.py"
    path.write_bytes(b"new = 3\r\n")
    for args in (["--revert"], ["--export"], ["--lock"]):
        code, text = project.main(committed, *args)
        assert code == 4 and "reset --soft" in text, text
    command = re.search(r"git -C \S+ (reset --soft [0-9a-f]+)", text)
    assert command is not None
    git(committed, *command.group(1).split())
    assert project.main(committed, "--export")[0] == 0
    assert (project.root / "overlay/lib/new/crlf.py").read_bytes() == b"new = 3\r\n"
    assert project.main(committed, "--revert")[0] == 0
    assert read_files(committed) == BASE_FILES


def test_a_commit_of_another_content_is_another_base(project: Project, committed: Path) -> None:
    files = read_files(committed)
    sub(files, "lib/a.py", b"line 7\n", b"line seven\n")
    content = files["lib/a.py"]
    assert isinstance(content, bytes)
    (committed / "lib/a.py").write_bytes(content)
    git(committed, "commit", "-qam", "more than the series")
    assert project.main(committed, "--status")[0] == 4
