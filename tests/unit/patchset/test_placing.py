"""Counting the places of a hunk, and applying a diff at a place that is certain."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.patch_project import git

from dsmoe.patchset.git import Git
from dsmoe.patchset.patch_file import Patch, parse_diff
from dsmoe.patchset.placing import PlacingProgress, apply_patch, occurrences, place

LINES = st.lists(st.sampled_from([b"a\n", b"b\n", b"\n", b"a\r\n"]), max_size=8)


@settings(deadline=None)
@given(LINES, LINES.filter(bool))
def test_occurrences_are_those_of_the_list_of_lines(content, wanted) -> None:
    places = range(len(content) - len(wanted) + 1)
    count = sum(content[at : at + len(wanted)] == wanted for at in places)
    assert occurrences(b"".join(content), b"".join(wanted)) == count


def test_a_last_line_without_a_newline() -> None:
    assert occurrences(b"a\nb", b"a\nb") == 1
    assert occurrences(b"a\nbc\n", b"a\nb") == 0
    assert occurrences(b"a\nb", b"a\nb\n") == 0
    assert occurrences(b"a\n", b"") == 0


DIFF = (
    b"diff --git a/f b/f\nindex %s..%s 100644\n--- a/f\n+++ b/f\n@@ -3,3 +3,3 @@\n c\n-d\n+D\n e\n"
)
HOME, AFTER = b"a\nb\nc\nd\ne\nf\n", b"a\nb\nc\nD\ne\nf\n"


@pytest.fixture
def repository(tmp_path: Path) -> Git:
    git(tmp_path, "init", "-q", ".")
    return Git(tmp_path).using(index=tmp_path / "index")


def blob(repository: Git, content: bytes) -> str:
    return repository.run("hash-object", "-w", "--stdin", stdin=content).text


def patch_for(repository: Git, name: str) -> Patch:
    diff = DIFF % (blob(repository, HOME).encode(), blob(repository, AFTER).encode())
    path = repository.path / "x.patch"
    path.write_bytes(diff)
    return Patch(name, path, b"", diff, tuple(parse_diff(diff)))


@pytest.mark.parametrize(
    "before, after",
    [
        (HOME, AFTER),
        (b"new\n" * 3 + HOME, b"new\n" * 3 + AFTER),  # moved down
        (b"c\nd\ne\n", b"c\nD\ne\n"),  # moved up
        (b"c\nd\nX\n" + HOME, b"c\nd\nX\n" + AFTER),  # near-matches are none
        (b"c \nd\ne\n" + HOME, b"c \nd\ne\n" + AFTER),
        (HOME + b"c\nd\ne\n", None),  # twice
        (b"c\nd\ne\n" + HOME, None),
        (b"a\nb\nC\nd\ne\n", None),  # another context: no fuzz
        (b"a\nb\nc\nd\ne", None),  # the last line of the context without its newline
        (b"a\r\nb\r\nc\r\nd\r\ne\r\n", None),
    ],
)
def test_a_shared_patch_lands_at_its_one_place(
    before: bytes, after: bytes | None, repository: Git
) -> None:
    patch = patch_for(repository, "../home/x.patch")
    entry = ("100644", blob(repository, before))
    found = place(repository, patch, {"f": entry})
    assert found == (None if after is None else {"f": ("100644", blob(repository, after))})
    progress = PlacingProgress({"f": entry})
    repository.run("read-tree", "--empty")
    repository.run("update-index", "--add", "--cacheinfo", f"100644,{entry[1]},f")
    problems = apply_patch(repository, patch, progress)
    assert bool(problems) == (after is None)
    if after is not None:
        assert progress.after == [{"f": ("100644", blob(repository, after))}]


def test_a_patch_of_the_base_itself_does_not_move(repository: Git) -> None:
    patch = patch_for(repository, "x.patch")
    oid = blob(repository, b"new\n" + HOME)
    repository.run("read-tree", "--empty")
    repository.run("update-index", "--add", "--cacheinfo", f"100644,{oid},f")
    [problem] = apply_patch(repository, patch, PlacingProgress({"f": ("100644", oid)}))
    assert f"made for blob {blob(repository, HOME)}, but there it is {oid}" in problem


def test_a_shared_patch_needs_the_file(repository: Git) -> None:
    patch = patch_for(repository, "../home/x.patch")
    repository.run("read-tree", "--empty")
    [problem] = apply_patch(repository, patch, PlacingProgress({}))
    assert "f: does not exist in index" in problem
    assert place(repository, patch, {"f": None}) is None
