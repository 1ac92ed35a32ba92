"""Odd but legal surroundings: each ends in the exact result, or in a refusal with nothing done."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
from support.patch_project import BASE_FILES, Project, git, read_files, result_files

from dsmoe.patchset.checkout.actions import apply, revert
from dsmoe.patchset.checkout.state import describe

HOSTILE = """[core]
\tautocrlf = true
\tquotePath = true
\tbigFileThreshold = 1
\thooksPath = {hooks}
\texcludesFile = {hooks}/everything
\tattributesFile = {hooks}/attributes
[apply]
\twhitespace = fix
\tignoreWhitespace = change
[diff]
\tnoprefix = true
\texternal = false
\trenames = copies
\tcontext = 9
\talgorithm = patience
[submodule]
\trecurse = true
[status]
\tshowUntrackedFiles = no
[color]
\tui = always
"""


@pytest.fixture
def hostile(tmp_path: Path) -> str:
    """A git configuration in which careless git commands go wrong."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-index-change").write_text("#!/bin/sh\ntouch ran\n")
    (hooks / "post-index-change").chmod(0o755)
    (hooks / "everything").write_text("*\n")
    (hooks / "attributes").write_text("* text eol=crlf\n")
    return HOSTILE.format(hooks=hooks)


def round_trip(project: Project, checkout: Path) -> None:
    """Status, apply, status, export, revert must all give the exact result."""
    files = {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file()}
    for args, code in (
        (["--status"], 20),
        ([], 0),
        (["--status"], 0),
        (["--export"], 0),
    ):
        found, text = project.main(checkout, *args)
        assert found == code, text
    assert read_files(checkout) == result_files()
    assert "nothing to export" in text
    assert {path: path.read_bytes() for path in files} == files
    assert project.main(checkout, "--revert")[0] == 0
    assert read_files(checkout) == BASE_FILES


@pytest.mark.parametrize("where", ["global", "repository"])
def test_hostile_configuration(
    where: str, project: Project, checkout: Path, hostile: str, tmp_path: Path, monkeypatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    file = home / ".gitconfig" if where == "global" else checkout / ".git/config"
    with file.open("a") as stream:
        stream.write(hostile)
    round_trip(project, checkout)
    assert not list(tmp_path.rglob("ran"))


def test_git_variables_of_the_caller(project: Project, checkout: Path, tmp_path, monkeypatch):
    other = project.clone(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.autocrlf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    monkeypatch.setenv("GIT_DIFF_OPTS", "-u9")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout))
    round_trip(project, checkout)
    assert read_files(other) == BASE_FILES
    assert not (tmp_path / "nowhere").exists()


def test_a_path_with_spaces_and_letters(project: Project, tmp_path: Path, monkeypatch) -> None:
    checkout = project.clone(tmp_path / "Üben $HOME ~ 'a': b")
    round_trip(project, checkout)
    monkeypatch.chdir(checkout)
    assert project.main(".", "--status")[0] == 20
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = project.run(checkout, "--json", env=env)
    assert done.returncode == 0 and json.loads(done.stdout)["outcome"] == "applied"
    assert project.run(checkout, "--status", env=env).returncode == 0


def test_a_shallow_clone(project: Project, tmp_path: Path) -> None:
    checkout = tmp_path / "shallow"
    checkout.mkdir()
    git(checkout, "init", "-q")
    url = f"file://{project.upstream}"
    git(checkout, "fetch", "-q", "--depth=1", url, project.base.commit)
    git(checkout, "checkout", "-q", "--detach", "FETCH_HEAD")
    assert git(checkout, "rev-parse", "--is-shallow-repository") == "true"
    round_trip(project, checkout)


def test_a_linked_worktree(project: Project, checkout: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    git(checkout, "worktree", "add", "-q", "--detach", str(linked), project.base.commit)
    apply(checkout, project.bases, lambda text: None)
    round_trip_files = read_files(checkout)
    linked_state = describe(linked, project.bases)
    assert linked_state.name == "pristine"
    code, text = project.main(linked)
    assert code == 0, text
    assert (linked / "lib/new/go.sh").exists() and (linked / ".git").is_file()
    assert project.main(linked, "--revert")[0] == 0
    assert git(linked, "status", "--porcelain") == ""
    assert read_files(checkout) == round_trip_files


@pytest.mark.parametrize("initialised", [False, True])
def test_a_submodule(initialised: bool, project: Project, tmp_path: Path) -> None:
    upstream = project.clone(tmp_path / "upstream")
    allow = ("-c", "protocol.file.allow=always")
    git(upstream, *allow, "submodule", "add", "-q", str(project.upstream), "Examples")
    git(upstream, "commit", "-qm", "with a submodule")
    data = json.loads((project.root / "bases/syn/base.json").read_text())
    data["commits"].append({"id": git(upstream, "rev-parse", "HEAD"), "label": "with a submodule"})
    (project.root / "bases/syn/base.json").write_text(json.dumps(data))
    options = ("--recurse-submodules",) if initialised else ()
    checkout = tmp_path / "checkout"
    git(tmp_path, *allow, "clone", "-q", *options, str(upstream), str(checkout))
    if initialised:
        (checkout / "Examples/docs/read.txt").write_bytes(b"mine\n")
    for args, code in (([], 0), (["--status"], 0), (["--export"], 0), (["--revert"], 0)):
        found, text = project.main(checkout, *args)
        assert found == code, text
    status = git(checkout, "status", "--porcelain", "--ignore-submodules=dirty")
    assert status == ""
    assert describe(checkout, project.bases).name == "pristine"
    if initialised:
        assert (checkout / "Examples/docs/read.txt").read_bytes() == b"mine\n"


@contextlib.contextmanager
def tmpfs(path: Path, size: str):
    """A small file system of its own at ``path``; skips where mounting is not allowed."""
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True
    )
    if done.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_read_only_tree(project: Project, tmp_path: Path, quiet) -> None:
    with tmpfs(tmp_path / "disk", "16m") as disk:
        checkout = project.clone(disk / "checkout")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert describe(checkout, project.bases).name == "pristine"
        assert project.main(checkout, "--check")[0] == 0
        code, text = project.main(checkout)
        assert code == 8 and "make the checkout writable" in text
        assert read_files(checkout) == BASE_FILES


def test_a_full_disk(project: Project, tmp_path: Path, quiet) -> None:
    """Fill a small disk so that the move fails at different points; every time nothing is lost."""
    (project.root / "overlay/lib/new/big.bin").write_bytes(os.urandom(300_000))
    outcomes = set()
    with tmpfs(tmp_path / "disk", "4m") as disk:
        checkout = project.clone(disk / "checkout")
        assert project.main(checkout, "--lock")[0] == 0
        for spare in (20_000, 200_000, 330_000, 400_000, 560_000):
            room = os.statvfs(disk)
            filler = disk / "filler"
            filler.write_bytes(b"x" * max(0, room.f_bavail * room.f_bsize - spare))
            code, text = project.main(checkout)
            filler.unlink()
            assert code in (0, 8), text
            outcomes.add(code)
            state = describe(checkout, project.bases)
            assert state.name in ("pristine", "partly-applied", "applied"), (text, state)
            assert ("partly applied" in text) == (state.name == "partly-applied"), text
            if code == 0:
                assert state.name == "applied"
            revert(checkout, project.bases, quiet)
            assert read_files(checkout) == BASE_FILES
            assert git(checkout, "status", "--porcelain") == ""
            shutil.rmtree(checkout)
            project.clone(checkout)
        apply(checkout, project.bases, quiet)
    assert 8 in outcomes


def test_a_file_size_limit(project: Project, checkout: Path, quiet) -> None:
    """The limit kills git by a signal in the midst of the move: it is put back, or says so."""
    (project.root / "overlay/lib/new/zz.bin").write_bytes(b"x" * 200_000)  # its object is small
    assert project.main(checkout, "--lock")[0] == 0
    done = project.run(
        checkout,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 8 and "put back" in done.stderr, done.stderr
    assert read_files(checkout) == BASE_FILES
    assert describe(checkout, project.bases).name == "pristine"
    apply(checkout, project.bases, quiet)
    assert describe(checkout, project.bases).name == "applied"
