"""A series carried over to another base: shared, merged, in conflict, kept by hand, left out.

The other base is a commit of the synthetic upstream with edits of its own; what it must look like
after applying is computed by replacing text, not by git.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.other_base import other_base
from support.patch_project import (
    OVERLAY,
    ROOT,
    Project,
    git,
    read_files,
    result_files,
    steps,
    sub,
)

from dsmoe.patchset.authoring.lint import lint
from dsmoe.patchset.base import load_bases

EDITS = {"lib/a.py": (b"line 20\n", b"line 20 of the other base\n")}


@pytest.fixture
def other(project: Project, tmp_path: Path) -> Path:
    return other_base(project, tmp_path / "other", EDITS)


def test_shared_also_where_a_file_differs_elsewhere(
    project: Project, checkout: Path, other: Path
) -> None:
    code, said = project.main(other, "--port-from", checkout)
    assert code == 0 and "2 patches shared with syn, 0 of other's own" in said
    again, said = project.main(other, "--port-from", checkout)
    assert again == 0 and "wrote" not in said
    assert project.main(other)[0] == 0
    expected = result_files()
    for name, edit in EDITS.items():
        sub(expected, name, *edit)
    assert read_files(other) == expected
    assert project.main(checkout)[0] == 0  # the first base is what it was
    assert read_files(checkout) == result_files()


def test_a_patch_of_equal_files_exists_once(
    project: Project, checkout: Path, tmp_path: Path
) -> None:
    other = other_base(project, tmp_path / "other", {"bin/tool.sh": (b"tool", b"hammer")})
    assert project.main(other, "--port-from", checkout)[0] == 0
    names = (project.root / "bases/other/series").read_text().split()
    assert names == ["../../patch/one.patch", "../../patch/two.patch"]
    assert not list((project.root / "bases/other").glob("*.patch"))
    code, said = project.main(other)
    assert code == 0 and "base other" in said
    (other / "lib/a.py").write_bytes(b"edited\n")
    code, said = project.main(other, "--export")
    assert code == 11 and "shared" in said and "two.patch" in said


def test_conflicts_are_listed_and_the_edited_file_is_taken(
    project: Project, checkout: Path, tmp_path: Path
) -> None:
    edits = {**EDITS, "lib/run.sh": (b"echo one", b"echo 1")}
    other = other_base(project, tmp_path / "other", edits)
    before = read_files(project.root)
    code, said = project.main(other, "--port-from", checkout)
    assert code == 5 and "two.patch: lib/run.sh: does not merge" in said
    assert read_files(project.root) == before
    place = tmp_path / "other.conflicts/two.patch/lib/run.sh"
    assert b"<<<<<<<" in place.read_bytes()
    place.write_bytes(b"#!/bin/sh\necho 2\n")
    assert project.main(other, "--port-from", checkout)[0] == 0
    place.unlink()  # from now on the patch in bases/other is the resolution
    code, said = project.main(other, "--port-from", checkout)
    assert code == 0 and "wrote" not in said
    assert project.main(other)[0] == 0
    assert (other / "lib/run.sh").read_bytes() == b"#!/bin/sh\necho 2\n"


def test_own_patches_and_omissions_are_kept(project: Project, checkout: Path, other: Path) -> None:
    folder = project.root / "bases/other"
    (other / "lib/a.py").write_bytes((other / "lib/a.py").read_bytes() + b"own\n")
    own = git(other, "diff", "--full-index", "-U1").encode("utf-8", "surrogateescape") + b"\n"
    (folder / "own.patch").write_bytes(b"Description: own\nX-Port: only here\n\n" + own)
    git(other, "checkout", "-q", ".")
    (folder / "series").write_text("# without two.patch: not here\nown.patch\n")
    assert project.main(other, "--port-from", checkout)[0] == 0
    text = (folder / "series").read_text()
    assert text.split("\n") == [
        "# without two.patch: not here",
        "own.patch",
        "../../patch/one.patch",
        "",
    ]
    assert project.main(other)[0] == 0
    expected = {**steps()[1], **OVERLAY}
    for name, edit in EDITS.items():
        sub(expected, name, *edit)
    content = expected["lib/a.py"]
    assert isinstance(content, bytes)
    expected["lib/a.py"] = content + b"own\n"
    assert read_files(other) == expected


@pytest.mark.parametrize("base", load_bases(), ids=lambda base: base.name)
def test_every_real_base_is_in_order(base, tmp_path: Path) -> None:
    """Its archive gives its trees, its series is linted, and it applies to the locked result."""
    assert lint(base) == []
    made = tool(tmp_path / "DeepSpeed", "--from-release", "--base", base.name)
    assert made.returncode == 0, made.stderr
    found = tool(tmp_path / "DeepSpeed", "--status")  # recognised by identity, without --base
    assert found.returncode == 0 and f"base {base.name}" in found.stdout
    locked = json.loads(base.result_file.read_text())["trees"]
    for top, oid in locked.items():
        tree = git(tmp_path / "DeepSpeed", "write-tree", "--missing-ok", f"--prefix={top}/")
        assert tree == oid
    for top, oid in base.trees.items():
        assert git(tmp_path / "DeepSpeed", "rev-parse", f"HEAD:{top}") == oid


@pytest.mark.long
def test_the_series_of_0_5_4_is_that_of_bd3ebd(tmp_path: Path) -> None:
    """Carrying it over again changes nothing: neither was edited without the other."""
    for name in ("bd3ebd", "0.5.4"):
        made = tool(tmp_path / name, "--from-release", "--base", name, "--no-apply")
        assert made.returncode == 0, made.stderr
    for folder in ("bases", "patch", "overlay"):  # a copy, so that a failure changes no file here
        subprocess.run(["cp", "-r", str(ROOT / folder), str(tmp_path / folder)], check=True)
    bases = ["--bases", tmp_path / "bases"]
    done = tool(tmp_path / "0.5.4", "--port-from", tmp_path / "bd3ebd", *bases)
    assert done.returncode == 0, done.stderr
    assert "wrote" not in done.stdout and "removed" not in done.stdout, done.stdout


def tool(*args: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "apply_patch.py"), *(str(item) for item in args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
