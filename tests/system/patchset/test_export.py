"""Export: a fixed point after apply; after edits, a series that gives exactly the edited tree."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.patch_project import (
    BASE_FILES,
    Project,
    git,
    read_files,
    snapshot,
    steps,
    write_files,
)

from dsmoe.common.errors import ExportRefused, NotApplied, UsageError
from dsmoe.patchset import pending
from dsmoe.patchset.authoring.export import export
from dsmoe.patchset.checkout.actions import apply, check
from dsmoe.patchset.checkout.state import describe
from dsmoe.patchset.series import load_series, read_names


def project_files(project: Project) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(project.root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in project.root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def applied(project: Project, checkout: Path, quiet) -> Path:
    apply(checkout, project.bases, quiet)
    return checkout


def replay(project: Project, path: Path, quiet) -> dict[str, bytes | str]:
    """What the project's series gives on a fresh clone, with plain git as a second opinion."""
    clone = project.clone(path)
    apply(clone, project.bases, quiet)
    assert describe(clone, project.bases).name == "applied"
    plain = project.clone(path.with_name(path.name + "-plain"))
    for name in read_names(project.base.series):
        git(plain, "apply", "--index", "--whitespace=nowarn", str(project.root / "patch" / name))
    found, overlay = read_files(clone), read_files(project.root / "overlay")
    assert {**read_files(plain), **overlay} == found
    return found


def test_export_after_apply_changes_nothing(
    project: Project, applied: Path, tmp_path: Path, quiet
) -> None:
    before = project_files(project)
    (applied / "lib/__pycache__").mkdir()
    (applied / "lib/__pycache__/a.pyc").write_bytes(b"x")
    (applied / "lib/b.pyc").write_bytes(b"x")
    (applied / ".git/info").mkdir(exist_ok=True)
    (applied / ".git/info/exclude").write_text("scratch/\n")
    (applied / "scratch").mkdir()
    (applied / "scratch/notes").write_bytes(b"x")
    (tmp_path / "ignore").write_text("*.mine\n")  # the user's own list counts too
    git(applied, "config", "core.excludesFile", str(tmp_path / "ignore"))
    (applied / "lib/x.mine").write_bytes(b"x")
    assert export(applied, project.bases, None, quiet).name == "nothing-to-export"
    assert project_files(project) == before


def test_every_kind_of_edit(project: Project, applied: Path, tmp_path: Path, quiet) -> None:
    header = (project.root / "patch/two.patch").read_bytes().split(b"diff --git")[0]
    edited = read_files(applied)
    edited["lib/a.py"] = edited["lib/a.py"].replace(b"line 39\n", b"line 39\nlast")  # no newline
    edited["lib/crlf.py"] = edited["lib/crlf.py"].replace(b"line 0\r\n", b"line 0\nline 0b\r\n")
    edited["lib/latin.txt"] += b"\xe4\n"
    edited["lib/data.bin"] = b"\0" + edited["lib/data.bin"][7:]
    edited["lib/link"] = "run.sh"
    edited["lib/old.py"] = b"back again, changed\n"
    del edited["lib/with space \xe9.txt"]
    edited["lib/new/crlf.py"] = b"new = 3\r\n"
    edited["lib/new/other.sh"] = b"#!/bin/sh\n"
    edited["lib/new/\xfc b.py"] = b""
    edited["lib/new/bin"] = bytes(range(256))
    del edited["lib/new/deep/x.py"]
    write_files(applied, edited)
    (applied / "lib/new/crlf.py").chmod(0o755)
    done = export(applied, project.bases, None, quiet)
    assert done.state.name == "applied"
    assert (project.root / "patch/two.patch").read_bytes().startswith(header + b"diff --git")
    assert not (project.root / "overlay/lib/new/deep").exists()
    assert os.access(project.root / "overlay/lib/new/crlf.py", os.X_OK)
    (applied / "lib/new/crlf.py").chmod(0o644)
    export(applied, project.bases, None, quiet)
    assert replay(project, tmp_path / "again", quiet) == edited
    assert export(applied, project.bases, None, quiet).name == "nothing-to-export"
    # The edit of latin.txt went to the only patch that touches it, the others to the last.
    one = load_series(project.base).patches[0]
    assert [item.path for item in one.files] == ["lib/a.py", "lib/crlf.py", "lib/latin.txt"]
    assert b"last" not in one.diff and b"line 0b" in one.diff


def test_an_edit_to_a_named_patch(project: Project, applied: Path, tmp_path: Path, quiet) -> None:
    path = applied / "lib/a.py"
    path.write_bytes(path.read_bytes().replace(b"line 10\n", b"line 10 edited\n"))
    export(applied, project.bases, "one.patch", quiet)
    one, two = (patch.diff for patch in load_series(project.base).patches)
    assert b"line 10 edited" in one and b"line 10 edited" not in two
    assert replay(project, tmp_path / "again", quiet) == read_files(applied)
    # The same lines as a later patch: refused, with the last patch as the remedy.
    path.write_bytes(path.read_bytes().replace(b"line 2 patched twice", b"line 2 thrice"))
    before = project_files(project)
    with pytest.raises(ExportRefused, match=r"--to two\.patch"):
        export(applied, project.bases, "one.patch", quiet)
    assert project_files(project) == before
    export(applied, project.bases, "two.patch", quiet)
    assert replay(project, tmp_path / "third", quiet) == read_files(applied)


def test_an_edit_to_a_new_patch(project: Project, applied: Path, tmp_path: Path, quiet) -> None:
    (applied / "docs/read.txt").write_bytes(b"no patch touches this\n")
    (applied / "lib/a.py").write_bytes(b"all new\n")
    before = project_files(project)
    with pytest.raises(ExportRefused) as caught:
        export(applied, project.bases, None, quiet)
    assert caught.value.details == ["docs/read.txt"] and "--to" in str(caught.value)
    bad = "#x.patch", "a\nb.patch", "a b.patch", " a.patch", "a\0.patch", "\udcff.patch"
    for name in ("../x.patch", "x", ".x.patch", "-x.patch", "x" * 300 + ".patch", *bad):
        with pytest.raises(UsageError):
            export(applied, project.bases, name, quiet)
    assert project_files(project) == before
    git(applied, "checkout", "docs/read.txt")
    export(applied, project.bases, "three.patch", quiet)
    text = (project.root / "patch/series").read_text()
    assert text == "# the series\none.patch\ntwo.patch\nthree.patch\n"
    assert (project.root / "patch/three.patch").read_bytes().startswith(b"Description: TODO")
    assert replay(project, tmp_path / "again", quiet) == read_files(applied)
    # Undone again: the patch is empty and goes away.
    (applied / "lib/a.py").write_bytes(steps()[2]["lib/a.py"])
    export(applied, project.bases, None, quiet)
    assert read_names(project.base.series) == ["one.patch", "two.patch"]
    assert not (project.root / "patch/three.patch").exists()


def test_export_needs_the_present_series(project: Project, checkout: Path, quiet) -> None:
    with pytest.raises(NotApplied, match="pristine"):
        export(checkout, project.bases, None, quiet)
    apply(checkout, project.bases, quiet)
    (project.root / "overlay/lib/new/crlf.py").write_bytes(b"changed in the project\n")
    with pytest.raises(NotApplied, match="other-series"):
        export(checkout, project.bases, None, quiet)
    git(checkout, "checkout", "HEAD", "--", "lib/a.py")
    with pytest.raises(NotApplied):
        export(checkout, project.bases, None, quiet)


def test_the_first_patch_of_an_empty_series(project: Project, checkout: Path, quiet) -> None:
    for path in [*(project.root / "patch").glob("*.patch"), *(project.root / "overlay").rglob("*")]:
        if path.is_file():
            path.unlink()
    (project.root / "patch/series").write_text("")
    (checkout / "lib/crlf.py").write_bytes(BASE_FILES["lib/crlf.py"] + b"end\r\n")
    export(checkout, project.bases, "first.patch", quiet)
    diff = (project.root / "patch/first.patch").read_bytes().split(b"\n", 7)[7]
    # The form: full index, no signature, one line of context, nothing after the second @@.
    blob = git(checkout, "hash-object", "--no-filters", "lib/crlf.py")
    old = git(checkout, "rev-parse", "HEAD:lib/crlf.py")
    assert diff == (
        b"diff --git a/lib/crlf.py b/lib/crlf.py\n"
        b"index %s..%s 100644\n--- a/lib/crlf.py\n+++ b/lib/crlf.py\n"
        b"@@ -12 +12,2 @@\n line 11\r\n+end\r\n" % (old.encode(), blob.encode())
    )


def stop_an_export(project: Project, applied: Path, quiet, monkeypatch) -> dict[str, bytes | str]:
    """An export killed after its commit point, between two renames; the edited files."""
    edited = read_files(applied)
    for name in ("lib/a.py", "lib/crlf.py", "lib/new/crlf.py"):
        content = edited[name]
        assert isinstance(content, bytes)
        edited[name] = content + b"# edited\n"
    write_files(applied, edited)

    class Killed(Exception):
        pass

    replaced = []
    replace = Path.replace

    def dies(self: Path, target: Path) -> Path:
        if pending.STAGE in self.parts and self.name != pending.MANIFEST and self.name[0] != ".":
            replaced.append(target)
            if len(replaced) == 2:
                raise Killed
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dies)
        with pytest.raises(Killed):
            export(applied, project.bases, None, quiet)
    assert pending.is_pending(project.root / "patch")
    return edited


def test_reading_names_a_stopped_export_and_writing_completes_it(
    project: Project, applied: Path, quiet, monkeypatch
) -> None:
    edited = stop_an_export(project, applied, quiet, monkeypatch)
    before = snapshot(project.root), snapshot(applied)
    code, text = project.main(applied, "--status")
    # The edits are the series that the export writes: the index still has the one before.
    assert code == 24 and "an export was stopped half-way" in text and "patch/.export" in text
    code, text = project.main(applied, "--status", "--json")
    assert json.loads(text)["state"]["pending"] == [str(project.root / "patch")]
    assert project.main(applied, "--check")[0] == 0
    assert (snapshot(project.root), snapshot(applied)) == before
    assert apply(applied, project.bases, quiet).state.name == "applied"
    assert not (project.root / "patch" / pending.STAGE).exists()
    assert read_files(applied) == edited
    assert project.main(applied, "--status")[0] == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\0",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'[["..", "../x", "0"]]',
        b'[["nowhere", "x", null]]',
    ],
    ids=range(7),
)
def test_a_damaged_record_of_an_export(
    content: bytes, project: Project, applied: Path, quiet
) -> None:
    stage = project.root / "patch" / pending.STAGE
    stage.mkdir()
    (stage / pending.MANIFEST).write_bytes(content)
    before = snapshot(project.root)
    for args in (["--status"], ["--check"], [], ["--export"]):
        code, text = project.main(applied, *args)
        [line] = [line for line in text.splitlines() if "damaged record" in line]
        assert code == 5 and str(stage) in line, text
    assert snapshot(project.root) == before


LINES = st.lists(
    st.sampled_from(
        [b"", b"same\n", b"same\n", b"\t \n", b"crlf\r\n", b"\xe9\n", b"diff --git a/x\n"]
    ),
    max_size=12,
).map(b"".join)


# The examples build on each other: each exports into the series that the one before left.
@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(a=LINES, b=LINES, new=LINES, to=st.sampled_from([None, "two.patch", "four.patch"]))
def test_any_content_comes_back(project, tmp_path_factory, quiet, a, b, new, to) -> None:
    path = tmp_path_factory.mktemp("any")
    checkout = project.clone(path / "one")
    apply(checkout, project.bases, quiet)
    (checkout / "lib/a.py").write_bytes(a)
    (checkout / "lib/latin.txt").write_bytes(b)
    (checkout / "lib/new/n.py").write_bytes(new)
    try:
        export(checkout, project.bases, to, quiet)
    except ExportRefused:  # the state between two patches does not merge
        assert to is not None
        export(checkout, project.bases, None, quiet)
    second = project.clone(path / "two")
    apply(second, project.bases, quiet)
    assert read_files(second) == read_files(checkout)
    assert check(checkout, project.bases, quiet).name == "already-applied"
    assert subprocess.run(["git", "diff", "--quiet"], cwd=checkout).returncode == 0
