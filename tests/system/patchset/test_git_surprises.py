"""What a repository can do to a command that only reads: nothing."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from support.patch_project import BASE_FILES, Project, git, read_files, result_files, snapshot

READING = (["--status"], ["--check"])


def trap(path: Path, mark: Path, end: str = "exec cat") -> str:
    """A program that leaves a mark when it is run, and then hands its input on."""
    path.write_text(f'#!/bin/sh\ntouch "{mark}"\n{end}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("where", ["info", "tracked folder"])
def test_filters_are_not_run(where: str, project: Project, checkout: Path, tmp_path: Path) -> None:
    """Names of all kinds: each driver that the configuration holds is switched off."""
    mark = tmp_path / "ran"
    program = trap(tmp_path / "program", mark)
    names = ["plain", "with space", "a.b", "a=b"]
    for name in names:
        for key in ("clean", "smudge", "process"):
            git(checkout, "config", f"filter.{name}.{key}", program)
        git(checkout, "config", f"filter.{name}.required", "true")
    place = checkout / ".git/info" if where == "info" else checkout / "docs"
    place.mkdir(exist_ok=True)
    name = "attributes" if where == "info" else ".gitattributes"
    rules = ["*.txt filter=plain", "*.py filter=a.b", "*.sh filter=a=b"]
    (place / name).write_text("\n".join(rules) + "\n")
    (checkout / "docs/read.txt").write_bytes(b"edited\n")  # git would clean it to compare
    (checkout / "docs/new.txt").write_bytes(b"new\n")
    git(checkout, "config", "diff.plain.textconv", program)
    for args in READING:
        code, text = project.main(checkout, *args)
        # .git/info reaches the files of the series: only to be looked at, it does not matter.
        assert code == (22 if args == ["--status"] else 0), text
    assert "docs/read.txt" in project.main(checkout, "--status")[1]
    assert not mark.exists()
    code, text = project.main(checkout)
    assert code == (7 if where == "info" else 0), text
    assert not mark.exists()
    if where == "info":
        assert "filter is plain" in text
        assert read_files(checkout)["lib/a.py"] == BASE_FILES["lib/a.py"]
        (place / name).unlink()
        assert project.main(checkout)[0] == 0
    assert project.main(checkout, "--status")[0] == 21
    assert not mark.exists()
    found = read_files(checkout)
    assert {path: found[path] for path in result_files() if path != "docs/read.txt"} == {
        path: content for path, content in result_files().items() if path != "docs/read.txt"
    }


def test_export_takes_the_bytes_that_are_there(
    project: Project, checkout: Path, tmp_path: Path
) -> None:
    assert project.main(checkout)[0] == 0
    mark = tmp_path / "ran"
    git(checkout, "config", "filter.f.clean", trap(tmp_path / "program", mark))
    (checkout / ".git/info").mkdir(exist_ok=True)
    (checkout / ".git/info/attributes").write_text("*.py filter=f text eol=crlf\n")
    content = b"new = 2\r\nmixed\nends\r\n"
    (checkout / "lib/new/crlf.py").write_bytes(content)
    assert project.main(checkout, "--export")[0] == 0
    assert (project.root / "overlay/lib/new/crlf.py").read_bytes() == content
    assert not mark.exists()


@pytest.fixture
def partial(project: Project, tmp_path: Path) -> tuple[Path, Path]:
    """A clone that lacks a blob of the base and would fetch it, and the mark of a fetch."""
    checkout = project.clone(tmp_path / "partial", "--no-local")
    mark = tmp_path / "fetched"
    for key, value in (
        ("remote.far.url", f"ext::{trap(tmp_path / 'far', mark, 'exit 1')}"),
        ("remote.far.promisor", "true"),
        ("remote.far.partialclonefilter", "blob:none"),
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "far"),
        ("protocol.ext.allow", "always"),
        ("core.askPass", trap(tmp_path / "ask", mark, "exit 1")),
    ):
        git(checkout, "config", key, value)
    return checkout, mark


def remove_object(checkout: Path, oid: str) -> None:
    """Make ``oid`` missing."""
    packs = list((checkout / ".git/objects/pack").glob("*.pack"))
    for pack in packs:
        moved = checkout / pack.name
        pack.rename(moved)
        pack.with_suffix(".idx").unlink()
        with moved.open("rb") as stream:
            subprocess.run(["git", "unpack-objects", "-q"], stdin=stream, cwd=checkout, check=True)
        moved.unlink()
    (checkout / ".git/objects" / oid[:2] / oid[2:]).unlink()


@pytest.mark.parametrize("what", ["lib/a.py", "lib", "", "HEAD"])
def test_a_missing_object_is_named_and_not_fetched(
    what: str, project: Project, partial: tuple[Path, Path]
) -> None:
    checkout, mark = partial
    oid = git(checkout, "rev-parse", "HEAD" if what == "HEAD" else f"HEAD:{what}")
    remove_object(checkout, oid)
    done = subprocess.run(["git", "cat-file", "-e", oid], cwd=checkout, capture_output=True)
    assert done.returncode and mark.exists()  # plain git does try
    mark.unlink()
    before = snapshot(checkout)
    for args in (*READING, [], ["--export"]):
        start = time.monotonic()
        code, text = project.main(checkout, *args)
        assert time.monotonic() - start < 100
        lines = [line for line in text.splitlines() if "damaged" in line]
        assert code == 13 and len(lines) == 1 and str(checkout) in lines[0], text
    assert not mark.exists()
    after = snapshot(checkout)
    assert {name for name in after if "/objects/" not in name} - {
        ".git/dsmoe",
        ".git/dsmoe/lock",
    } == {name for name in before if "/objects/" not in name}


def test_a_base_that_was_never_there_is_no_damage(
    project: Project, partial: tuple[Path, Path]
) -> None:
    """As in a checkout made of a release archive: DeepSpeed's own commit is only promised."""
    checkout, mark = partial
    base = git(checkout, "rev-parse", "HEAD")
    git(checkout, "checkout", "-q", "--orphan", "own")
    (checkout / "lib/a.py").write_text("changed\n")
    git(checkout, "commit", "-qam", "own")
    remove_object(checkout, base)
    for args in (["--status"], ["--check"], []):
        code, text = project.main(checkout, *args)
        assert code == 4 and "damaged" not in text and f"fetch {project.base.upstream}" in text
    assert not mark.exists()


@pytest.mark.parametrize("how", ["empty", "flipped"])
def test_a_broken_object_is_named(how: str, project: Project, checkout: Path) -> None:
    oid = git(checkout, "rev-parse", "HEAD:lib/a.py")
    # A clone of a local folder shares its objects by hard links: copy before breaking.
    path = checkout / ".git/objects" / oid[:2] / oid[2:]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(b"" if how == "empty" else content[:-4] + b"xxxx")
    for args in (*READING, []):
        code, text = project.main(checkout, *args)
        assert code == 13 and text.count("damaged") == 1, text
    assert read_files(checkout) == BASE_FILES


def test_a_broken_index_is_named(project: Project, checkout: Path) -> None:
    (checkout / ".git/index").write_bytes(b"DIRC\0\0\0\2 no index")
    for args in (*READING, []):
        code, text = project.main(checkout, *args)
        assert code == 13 and "the index of" in text and "git -C" in text, text
    (checkout / ".git/index").unlink()  # what the message says
    git(checkout, "reset")
    assert project.main(checkout)[0] == 0


def test_names_that_no_file_can_have(template: Project, tmp_path: Path) -> None:
    for path in ("x" * 300, tmp_path / ("y" * 300) / "z"):
        code, text = template.main(path, "--status")
        assert code == 3 and "Traceback" not in text and len(text.splitlines()) == 1, text
