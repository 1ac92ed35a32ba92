"""Project files of any bytes: read as they are, or refused by the one expected kind of error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.patch_project import Project

from dsmoe.common.errors import SeriesBroken, UsageError
from dsmoe.patchset.authoring.lint import lint
from dsmoe.patchset.base import load_base
from dsmoe.patchset.checkout.records import Record, read_record
from dsmoe.patchset.inputs import is_plain_path, read_input
from dsmoe.patchset.locked_result import read_result
from dsmoe.patchset.patch_file import parse_diff, read_patch
from dsmoe.patchset.pending import MANIFEST, STAGE, finish
from dsmoe.patchset.series import load_series, read_names

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
ODD = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"[" * 100_000,
    b"1" * 5000,
    b'"\\ud800"',
    b"{}",
    b"[]",
    b"null",
    b"{" + b'"a":' * 10,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def base_with(folder: Path, content: bytes) -> None:
    (folder / "base.json").write_bytes(content)
    try:
        load_base(folder)
    except UsageError as error:
        assert str(folder) in str(error) and "\n" not in str(error)
        return
    raise AssertionError(f"{content[:80]!r} was taken for a base")


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_odd_bytes_are_no_base(content: bytes, folder: Path) -> None:
    base_with(folder, content)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_base_with_one_odd_field(template: Project, folder: Path, data: st.DataObject) -> None:
    """Any JSON in place of one field, at any depth: a base, or one line."""
    base = json.loads((template.root / "bases/syn/base.json").read_text())
    base["release"] = {
        **dict.fromkeys(("package", "version", "archive", "sha256", "root"), "x"),
        "commit": dict.fromkeys(("name", "email", "date", "message"), "x"),
        "steps": [{"do": "link", "path": "a", "target": "b"}],
    }
    (folder / "base.json").write_text(json.dumps(base))
    load_base(folder)
    places: list[tuple[Any, Any]] = []

    def walk(item: Any) -> None:
        for key in list(item) if isinstance(item, dict) else range(len(item)):
            places.append((item, key))
            if isinstance(item[key], (dict, list)):
                walk(item[key])

    walk(base)
    item, key = data.draw(st.sampled_from(places))
    item[key] = data.draw(JSON)
    (folder / "base.json").write_text(json.dumps(base))
    try:
        load_base(folder)
    except UsageError as error:
        assert "\n" not in str(error) and len(str(error)) < 600


@pytest.mark.parametrize(
    "content", [b"\xff\n", b"a\0b.patch\n", b"x" * 300 + b".patch\n", b"../..\n", b"/etc/passwd\n"]
)
def test_a_series_of_odd_names(content: bytes, project: Project) -> None:
    (project.root / "patch/series").write_bytes(content)
    try:
        series = load_series(project.base)
    except SeriesBroken as error:
        assert "\n" not in str(error)
    else:  # a readable file that is no patch; the build says that it holds no diff
        assert [patch.files for patch in series.patches] == [()]
    assert lint(project.base, project.root)


def test_what_is_not_a_regular_file_is_refused_at_once(project: Project, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        with pytest.raises(OSError):
            read_input(path)
        with pytest.raises(SeriesBroken):
            read_names(path)
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 1 << 40)
    with pytest.raises(SeriesBroken, match="more than"):
        read_names(tmp_path / "large")
    (project.root / "patch/one.patch").unlink()
    os.mkfifo(project.root / "patch/one.patch")
    with pytest.raises(SeriesBroken) as caught:
        load_series(project.base)
    assert caught.value.details == ["one.patch: it is not a regular file, but a pipe (FIFO)"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([
    b"diff --git a/x b/x", b'diff --git "a/\\303\\251" "b/\\303\\251"', b'diff --git "a/\\', b"\n",
    b'diff --git "a/x\\" "b/x"', b'diff --git "a/\\777" "b/', b"diff --git a/../x b/../x", b"@@ -1",
    b"@@ -1,9 +1,9 @@", b"@@ -1 +1 @@", b"-a", b"+b", b" c", b"\\ No newline", b"index 0..1",
    b"index " + b"1" * 40 + b".." + b"2" * 40 + b" 100644", b"\xff", b'diff --git "a/.git/x" "b/',
    b"GIT binary patch", b"new file mode 100644", b"deleted file mode 1", b"rename from x",
])).map(b"".join))  # fmt: skip
def test_any_diff_is_read_or_refused_by_its_line(diff: bytes) -> None:
    try:
        found = list(parse_diff(diff))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(is_plain_path(item.path) for item in found)


@pytest.mark.parametrize("path", [b'"a/\\"', b'"a/\\x41"', b'"a/\\400"', b'"b/x"'])
def test_quoted_paths_that_git_does_not_write(path: bytes) -> None:
    with pytest.raises(ValueError):
        list(parse_diff(b"diff --git " + path + b' "b/x"\nindex 1..2\n'))


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_odd_bytes_are_no_export_no_result_and_no_record(content: bytes, project: Project) -> None:
    stage = project.root / "patch" / STAGE
    stage.mkdir()
    (stage / MANIFEST).write_bytes(content)
    with pytest.raises(SeriesBroken, match="damaged record of an export"):
        finish(project.root / "patch")
    project.base.result_file.write_bytes(content)
    with pytest.raises(ValueError):
        read_result(project.base)
    (project.root / "journal.json").write_bytes(content)
    assert read_record(project.root / "journal.json") is None


def test_a_record_with_a_path_outside_counts_as_none(tmp_path: Path) -> None:
    entry = ("100644", "1" * 40)
    for path, wanted in (("lib/a", True), ("../a", False), ("/a", False), ("a/.git/x", False)):
        (tmp_path / "r").write_bytes(Record("applied", "s", {path: None}, {path: entry}).dump())
        assert (read_record(tmp_path / "r") is not None) == wanted
    (tmp_path / "r").write_bytes(Record("applied", "s", {}, {"a": ("x", "1" * 40)}).dump())
    assert read_record(tmp_path / "r") is None


def test_a_patch_of_any_bytes_is_read_or_refused(tmp_path: Path) -> None:
    for number, content in enumerate([*ODD, b"\ndiff --git \n", b"diff --git", b"diff --git \n"]):
        (tmp_path / "p").write_bytes(content)
        try:
            assert read_patch(tmp_path / "p").files == ()
        except ValueError as error:
            assert number >= len(ODD) and "\n" not in str(error)
