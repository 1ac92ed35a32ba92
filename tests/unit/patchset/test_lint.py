"""The lint holds on the real series, and sees each kind of fault."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
from support.patch_project import Project

from dsmoe.patchset.authoring.lint import lint, read_fields
from dsmoe.patchset.base import Base, load_bases
from dsmoe.patchset.locked_result import read_result
from dsmoe.patchset.series import load_series


def test_the_real_series_is_in_order(real_base: Base) -> None:
    assert lint(real_base) == []


@pytest.mark.parametrize("base", load_bases(), ids=lambda base: base.name)
def test_the_series_is_the_locked_one(base: Base) -> None:
    """A checkout that is built already is used as it is; a new one is refused."""
    assert load_series(base).digest == read_result(base)[1]


@pytest.fixture
def root(project: Project) -> Path:
    """Where the synthetic headers' X-Test points."""
    path = project.root / "tests/system/patchset/test_apply.py"
    path.parent.mkdir(parents=True)
    path.write_text("class TestX:\n def test_in(self): pass\n"
                    "def test_apply_gives_the_expected_bytes(): pass\n")  # fmt: skip
    return project.root


def test_a_series_in_order(project: Project, root: Path) -> None:
    assert lint(project.base, root) == []


def swap(old: bytes, new: bytes) -> Callable[[Path], None]:
    """A fault: ``old`` becomes ``new`` in one.patch."""

    def change(root: Path) -> None:
        path = root / "patch/one.patch"
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).write_text(text)

    return change


def long_hunk(root: Path) -> None:
    lines = b"".join(b"+x\n" for _ in range(60))
    swap(b"@@ -2,3 +2,3 @@\n line 1\n", b"@@ -2,3 +2,63 @@\n" + lines + b" line 1\n")(root)


X_TEST = b"test_apply.py::test_apply_gives_the_expected_bytes"
FAULTS = {
    "one.patch: listed twice": write("patch/series", "one.patch\ntwo.patch\none.patch\n"),
    "two.patch: in patch/ but not in the series": write("patch/series", "one.patch\n"),
    "six.patch: in the series but missing": write(
        "patch/series", "one.patch\ntwo.patch\nsix.patch"
    ),
    "the series is empty": write("patch/series", "# nothing\n"),
    "notes.txt: in patch/ but not in the series": write("patch/notes.txt", "x"),
    "one.patch: header: Description is missing": swap(
        b"Description: change things (0)\n and say why.\n", b""
    ),
    "one.patch: header: Forwarded is missing": swap(b"Forwarded: not-needed\n", b""),
    "one.patch: header: X-Test is missing or empty": swap(
        b"X-Test: tests/system/patchset/" + X_TEST, b""
    ),
    "one.patch: header: neither Origin nor Bug": swap(b"Origin: here\n", b""),
    "one.patch: header: unknown field Sponsor": swap(b"Origin:", b"Sponsor: x\nOrigin:"),
    "one.patch: header: line 3: Description comes twice": swap(b"Origin: here", b"Description: b"),
    "one.patch: header: TODO left": swap(b"Origin: here", b"Origin: TODO"),
    "one.patch: header: Defect is 'one'": swap(b"Origin:", b"Defect: one\nOrigin:"),
    "over 72 characters": swap(b"change things", b"c" * 80),
    "one.patch: X-Test: there is no tests/none.py": swap(
        b"system/patchset/test_apply.py", b"none.py"
    ),
    "one.patch: X-Test: tests/system/patchset/test_apply.py has no t": swap(
        X_TEST, b"test_apply.py::t"
    ),
    "test_apply.py has no test_out": swap(X_TEST, b"test_apply.py::TestX::test_out"),
    "is not of the form": swap(X_TEST, b"test_apply.py"),
    "one.patch: the header has CR line ends": swap(b"(0)\n", b"(0)\r\n"),
    "one.patch: ends in a mail signature": lambda root: (root / "patch/one.patch").write_bytes(
        (root / "patch/one.patch").read_bytes() + b"-- \n2.39.5\n\n"
    ),
    "lib/a.py: renamed": swap(b"index ", b"similarity index 90%\nindex "),
    "lib/a.py: no full blob ids": swap(b"index ", b"Index "),
    "adds 61 lines": long_hunk,
    "lib/a.py is also a file of the overlay": write("overlay/lib/a.py", "x"),
    "the hunk of line 5 ends early": swap(b"@@ -2,3 +2,3 @@", b"@@ -2,9 +2,9 @@"),
}


@pytest.mark.parametrize("wanted", FAULTS)
def test_each_fault_is_seen(wanted: str, project: Project, root: Path) -> None:
    FAULTS[wanted](root)
    problems = lint(project.base, root)
    assert [text for text in problems if wanted in text], problems


def test_what_is_allowed(project: Project, root: Path) -> None:
    several = (
        b"X-Test: tests/system/patchset/test_apply.py::TestX::test_in\n tests/system/patchset/"
        + X_TEST
    )
    swap(b"X-Test: tests/system/patchset/" + X_TEST, several + b"[case]\nDefect: 3, 4")(root)
    swap(b"Origin: here", b"Bug: https://example.org/1")(root)
    assert lint(project.base, root) == []
    (root / "patch/series").write_text("# nothing yet\n")
    for path in (root / "patch").glob("*.patch"):
        path.unlink()
    assert lint(project.base, root, allow_empty=True) == []


def test_fields_join_their_lines() -> None:
    assert read_fields(b"Bug: a\n b\n\nX-Test:\n c\n d\n") == {"Bug": "a\nb", "X-Test": "\nc\nd"}
    with pytest.raises(ValueError, match="line 1"):
        read_fields(b" indented under nothing\n")
