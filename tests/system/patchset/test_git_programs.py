"""Programs that a repository or the environment names are not run, by any command."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator

import pytest
from support.patch_project import BASE_FILES, Project, git, read_files, result_files

NOBODY = 65534
HOOKS = ("post-checkout", "post-index-change", "reference-transaction", "pre-commit", "fsmonitor")
#: Keys of a repository whose value git may run; where there is a choice, so that it would.
KEYS = (
    "core.fsmonitor",
    "core.pager",
    "core.editor",
    "core.sshCommand",
    "core.gitProxy",
    "core.askPass",
    "core.alternateRefsCommand",
    "credential.helper",
    "diff.external",
    "diff.odd.command",
    "diff.odd.textconv",
    "merge.odd.driver",
    "gpg.program",
    "sequence.editor",
    "uploadpack.packObjectsHook",
    "filter.odd.clean",
    "filter.odd.smudge",
    "filter.odd.process",
    "pager.status",
    "pager.diff",
    "remote.origin.uploadpack",
    "remote.origin.vcs",
)
VARIABLES = (
    "GIT_SSH_COMMAND",
    "GIT_SSH",
    "GIT_EXTERNAL_DIFF",
    "GIT_PAGER",
    "GIT_EDITOR",
    "GIT_SEQUENCE_EDITOR",
    "GIT_ASKPASS",
    "GIT_PROXY_COMMAND",
    "PAGER",
    "SSH_ASKPASS",
)


@pytest.fixture
def trap(tmp_path: Path) -> tuple[str, Path]:
    """A program that leaves a mark and fails, and that mark."""
    mark, program = tmp_path / "ran", tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$0 $*" >> "{mark}"\nexit 1\n')
    program.chmod(0o755)
    return str(program), mark


def round_trip(project: Project, checkout: Path) -> None:
    for args, wanted in (
        (["--status"], 20),
        (["--check"], 0),
        ([], 0),
        (["--status"], 0),
        (["--export"], 0),
        (["--lock"], 0),
        (["--revert"], 0),
    ):
        code, text = project.main(checkout, *args)
        assert code == wanted, (args, text)
        if not args:
            assert {**read_files(checkout), **result_files()} == read_files(checkout)
    assert {**read_files(checkout), **BASE_FILES} == read_files(checkout)


@pytest.mark.parametrize("where", ["config", "included", "worktree"])
def test_programs_of_the_repository(
    where: str, project: Project, checkout: Path, tmp_path: Path, trap: tuple[str, Path]
) -> None:
    program, mark = trap
    hooks = checkout / ".git/hooks"
    for folder in (hooks, tmp_path / "hooks"):
        folder.mkdir(exist_ok=True)
        for name in HOOKS:
            shutil.copy(program, folder / name)
    # not below lib/, whose attributes would change what is applied there, and are refused
    (checkout / "docs/.gitattributes").write_text("* diff=odd merge=odd filter=odd\n")
    (checkout / "docs/more.txt").write_text("new\n")
    pairs = [*((key, program) for key in KEYS), ("core.hooksPath", str(tmp_path / "hooks"))]
    if where == "included":
        for key, value in pairs:
            git(checkout, "config", "-f", str(tmp_path / "more"), key, value)
        git(checkout, "config", "include.path", str(tmp_path / "more"))
    else:
        options = []
        if where == "worktree":
            git(checkout, "config", "extensions.worktreeConfig", "true")
            options = ["--worktree"]
        for key, value in pairs:
            git(checkout, "config", *options, key, value)
    # plain git, which runs some of them: the traps are real
    subprocess.run(["git", "status"], cwd=checkout, capture_output=True)
    subprocess.run(["git", "diff"], cwd=checkout, capture_output=True)
    assert mark.exists()
    mark.unlink()
    for args, wanted in ((["--status"], 22), (["--check"], 0), ([], 0), (["--status"], 21)):
        code, text = project.main(checkout, *args)
        assert code == wanted, (args, text)
    assert project.main(checkout, "--revert")[0] == 0
    assert not mark.exists(), mark.read_text()
    found = read_files(checkout)
    assert {path: found.get(path) for path in BASE_FILES} == BASE_FILES


def test_programs_of_the_environment(
    project: Project, checkout: Path, trap: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, mark = trap
    for name in VARIABLES:
        monkeypatch.setenv(name, program)
    words = [f"'{key}={program}'" for key in ("core.fsmonitor", "core.pager", "diff.external")]
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", " ".join(words))
    trace = mark.with_name("trace")
    for name in ("GIT_TRACE", "GIT_TRACE2_EVENT", "GIT_TRACE_SETUP", "GIT_TRACE_PACKET"):
        monkeypatch.setenv(name, str(trace))
    monkeypatch.setenv("GIT_NAMESPACE", "x")
    monkeypatch.setenv("GIT_ATTR_SOURCE", "HEAD")
    monkeypatch.setenv("GIT_LITERAL_PATHSPECS", "0")
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    round_trip(project, checkout)
    assert not mark.exists() and not trace.exists()


def test_a_work_tree_elsewhere(project: Project, checkout: Path, tmp_path: Path) -> None:
    other = project.clone(tmp_path / "other")
    git(checkout, "config", "core.worktree", str(other))
    before = read_files(other)
    for args in (["--status"], [], ["--revert"]):
        code, text = project.main(checkout, *args)
        assert code == 3 and len(text.splitlines()) == 1, text
    assert read_files(other) == before and read_files(checkout) == BASE_FILES


@pytest.mark.parametrize("how", ["cut", "gone", "index gone", "alternates gone"])
def test_a_damaged_pack_is_named(how: str, project: Project, tmp_path: Path) -> None:
    options = ["--shared"] if how == "alternates gone" else ["--no-local"]
    checkout = project.clone(tmp_path / "packed", *options)
    if how == "alternates gone":
        (checkout / ".git/objects/info/alternates").write_text(f"{tmp_path / 'none'}\n")
    else:
        git(checkout, "repack", "-adq")
        [pack] = (checkout / ".git/objects/pack").glob("*.pack")
        if how == "cut":
            data = pack.read_bytes()
            pack.unlink()  # it is read-only
            pack.write_bytes(data[: len(data) // 2])
        elif how == "gone":
            pack.unlink()
        else:
            pack.with_suffix(".idx").unlink()
    for args in (["--status"], ["--check"], []):
        code, text = project.main(checkout, *args)
        assert code in (3, 13) and len(text.splitlines()) <= 2, (args, text)
        assert str(checkout) in text and ("damaged" in text or "not a git" in text), text
    assert read_files(checkout) == BASE_FILES


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read; pytest's own is closed to others."""
    with tempfile.TemporaryDirectory(prefix="dsmoe-open-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(project: Project, home: Path, *args: object) -> tuple[int, str]:
    """``project.main(*args)`` in a fork that is another user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.environ["HOME"] = str(home)
            os.environ.pop("SUDO_UID", None)
            os.chdir(home)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code, text = project.main(*args)
            os.write(writer, text.encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    return os.WEXITSTATUS(os.waitpid(child, 0)[1]), text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user(template: Project, open_folder: Path) -> None:
    shutil.copytree(template.root, open_folder / "project", symlinks=True)
    project = Project(open_folder / "project", template.upstream)
    checkout = template.clone(open_folder / "checkout", "--no-local")
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    project.main(checkout, "--check")  # imports what nobody may not read
    for args in (["--status"], ["--check"], [], ["--revert"], ["--export"]):
        code, text = as_nobody(project, home, checkout, *args)
        assert code == 3 and len(text.splitlines()) == 1, (args, code, text)
        assert "belongs to another user" in text and "safe.directory" in text, text
    (home / ".gitconfig").write_text(f"[safe]\n\tdirectory = {checkout}\n")
    for args, wanted in ((["--status"], 20), (["--check"], 0), ([], 8), (["--revert"], 8)):
        code, text = as_nobody(project, home, checkout, *args)
        assert code == wanted and "Traceback" not in text, (args, code, text)
        assert wanted != 8 or "make the checkout writable" in text, text
    (checkout / "lib").chmod(0o700)  # closed to it
    code, text = as_nobody(project, home, checkout, "--status")
    assert code and "Traceback" not in text and len(text.splitlines()) <= 3, text
    (checkout / ".git").chmod(0o700)
    code, text = as_nobody(project, home, checkout, "--status")
    assert code == 3 and len(text.splitlines()) == 1, text
    (checkout / ".git").chmod(0o755)
    (checkout / "lib").chmod(0o755)
    assert read_files(checkout) == BASE_FILES
