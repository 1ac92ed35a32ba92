"""What is refused: by which exit code, with which words, and with nothing changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.patch_project import BASE_FILES, OVERLAY, ROOT, Project, git, read_files


def refused(project: Project, path: Path, code: int, *words: str) -> None:
    """Apply must fail with ``code``, one message line and all ``words``."""
    found, text = project.main(path)
    assert (found, [word for word in words if word not in text]) == (code, []), text
    assert "Traceback" not in text


def test_what_is_no_checkout(template: Project, checkout: Path, tmp_path: Path) -> None:
    refused(template, tmp_path / "none", 3, "does not exist", "--from-release")
    (tmp_path / "file").write_text("x")
    refused(template, tmp_path / "file", 3, "is not a folder")
    (tmp_path / "empty").mkdir()
    refused(template, tmp_path / "empty", 3, "is not a git checkout")
    refused(template, checkout / "lib", 3, "inside the repository", str(checkout))
    refused(template, checkout / ".git", 3, "git folder")
    git(tmp_path, "clone", "-q", "--bare", str(template.upstream), "bare")
    refused(template, tmp_path / "bare", 3, "bare repository")
    # An unpacked archive below another repository is no checkout either.
    shutil.copytree(checkout / "lib", checkout / "sub" / "lib", symlinks=True)
    refused(template, checkout / "sub", 3, "not a checkout's top folder")


def test_another_base(template: Project, checkout: Path, tmp_path: Path) -> None:
    (checkout / "lib/a.py").write_bytes(b"another version\n")
    git(checkout, "commit", "-qam", "another version")
    head = git(checkout, "rev-parse", "HEAD")
    commit = template.base.commit
    refused(template, checkout, 4, head, commit, f"git -C {checkout} checkout {commit}", "lib/ is")
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    refused(template, other, 4, "no commit yet")
    git(other, "commit", "-q", "--allow-empty", "-m", "x")
    refused(template, other, 4, "is not a checkout of DeepSpeed", "--from-release")
    (other / "lib").mkdir()
    (other / "lib" / "a.py").write_text("another version\n")
    git(other, "add", "lib")
    git(other, "commit", "-q", "-m", "x")
    refused(template, other, 4, f"fetch {template.base.upstream} {commit}")


def test_local_changes_are_listed_and_kept(template: Project, checkout: Path) -> None:
    (checkout / "lib/a.py").write_bytes(b"mine\n")
    (checkout / "lib/run.sh").chmod(0o644)
    (checkout / "lib/latin.txt").unlink()
    (checkout / "lib/new").mkdir()
    (checkout / "lib/new/crlf.py").write_bytes(b"untracked\n")
    (checkout / "lib/new/empty.py").mkdir()
    (checkout / "lib/new/go.sh").write_bytes(OVERLAY["lib/new/go.sh"])  # ours already: no matter
    (checkout / "lib/new/go.sh").chmod(0o755)
    (checkout / "lib/crlf.py").write_bytes(b"staged\r\n")
    git(checkout, "add", "lib/crlf.py")
    (checkout / "lib/crlf.py").write_bytes(BASE_FILES["lib/crlf.py"])
    (checkout / "elsewhere").mkdir()
    (checkout / "lib/new/deep").symlink_to("../../elsewhere")
    wanted = [
        "lib/a.py: edited",
        "lib/run.sh: mode changed",
        "lib/latin.txt: deleted",
        "lib/new/crlf.py: untracked file in the way",
        "lib/new/empty.py: a folder or a link stands in the way",
        "lib/new/deep/x.py: a folder or a link stands in the way",
        "lib/crlf.py: staged change",
        "7 files",
    ]
    status = git(checkout, "status", "--porcelain", "-uall")
    refused(template, checkout, 7, *wanted)
    assert git(checkout, "status", "--porcelain", "-uall") == status
    assert (checkout / "lib/a.py").read_bytes() == b"mine\n"
    assert not list((checkout / "elsewhere").iterdir())


def test_edits_of_applied_files_survive_a_revert(template: Project, checkout: Path) -> None:
    assert template.main(checkout)[0] == 0
    (checkout / "lib/new/crlf.py").write_bytes(b"mine\r\n")
    before = read_files(checkout)
    code, text = template.main(checkout, "--revert")
    assert code == 7 and "lib/new/crlf.py: edited" in text
    assert read_files(checkout) == before
    code, text = template.main(checkout)
    assert code == 0 and "already applied" in text and "edited: lib/new/crlf.py" in text
    assert read_files(checkout) == before


def test_an_unfinished_merge_and_a_foreign_index_lock(template: Project, checkout: Path) -> None:
    (checkout / ".git/index.lock").write_bytes(b"")
    refused(template, checkout, 14, "index.lock", "rm ")
    assert (checkout / ".git/index.lock").exists()
    (checkout / ".git/index.lock").unlink()
    blob = git(checkout, "rev-parse", "HEAD:lib/a.py")
    lines = "".join(f"100644 {blob} {stage}\tlib/a.py\n" for stage in (1, 2, 3))
    subprocess.run(
        ["git", "update-index", "--index-info"],
        input=f"0 {'0' * 40}\tlib/a.py\n{lines}",
        cwd=checkout,
        text=True,
        check=True,
    )
    refused(template, checkout, 7, "unfinished merge", "lib/a.py")
    assert read_files(checkout) == BASE_FILES


def test_attributes_that_change_bytes(template: Project, checkout: Path) -> None:
    (checkout / ".git/info").mkdir(exist_ok=True)
    (checkout / ".git/info/attributes").write_text("*.py text eol=crlf\n")
    refused(template, checkout, 7, "attributes", "lib/a.py: eol is crlf")
    (checkout / ".git/info/attributes").write_text("*.py diff=python\n*.txt text=auto\n")
    assert template.main(checkout)[0] == 0


def test_missing_git_or_gitpython(template: Project, checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = template.run(checkout, env={**os.environ, "PATH": str(tmp_path / "bin")})
    assert done.returncode == 8 and len(done.stderr.splitlines()) == 1
    assert "install git" in done.stderr
    (tmp_path / "git.py").write_text("raise ImportError('no GitPython here')\n")
    done = template.run(checkout, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 8 and len(done.stderr.splitlines()) == 1
    assert "-m pip install 'GitPython>=" in done.stderr
    assert read_files(checkout) == BASE_FILES


def test_the_command_imports_little() -> None:
    code = "import sys, dsmoe.commands.apply; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "'torch'" not in done.stdout and "'numpy'" not in done.stdout


def test_usage_errors(template: Project, checkout: Path) -> None:
    for args in (
        [checkout, "--bogus"],
        [],
        [checkout, "--to", "x.patch"],
        [checkout, "--check", "--revert"],
        [checkout, "--archive", "x"],
        [checkout, "--base", "none-such"],
        [checkout, "--from-release"],  # this base has no release archive
        [checkout, "--from-release", "--archive", checkout],
    ):
        code, text = template.main(*args)
        assert code == 2 and text.startswith("error: "), (args, text)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_repository_of_another_user(template: Project, tmp_path: Path, monkeypatch) -> None:
    checkout = template.clone(tmp_path / "theirs")
    os.chown(checkout, 12345, 12345)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SUDO_UID", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    refused(template, checkout, 3, "belongs to another user", "safe.directory")
    (home / ".gitconfig").write_text(f"[safe]\n\tdirectory = {checkout}\n")
    assert template.main(checkout)[0] == 0


def test_two_appliers_at_once(template: Project, checkout: Path) -> None:
    both = [
        subprocess.Popen(template.command(checkout), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    texts = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("already applied" in text for text in texts) == [False, True]


def test_a_lock_that_is_held_too_long(template: Project, checkout: Path, monkeypatch) -> None:
    import fcntl

    from dsmoe.patchset.checkout import lock

    monkeypatch.setattr(lock, "LOCK_WAIT_SECONDS", 0.2)
    (checkout / ".git/dsmoe").mkdir()
    with (checkout / ".git/dsmoe/lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        refused(template, checkout, 14, "another applier", "after 0.2 s")
    assert read_files(checkout) == BASE_FILES


def test_bases_that_know_no_installed_package(template: Project) -> None:
    for args in (["--status"], ["--check"], ["--revert"], []):
        code, text = template.main("--installed", *args)
        assert code == 2 and len(text.splitlines()) == 1 and "syn has no list of files" in text
