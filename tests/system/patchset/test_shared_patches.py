"""A patch that two bases share, where the second has its lines at other places.

The other base is a commit of the synthetic upstream with lines inserted above the hunks; what it
must look like after applying is computed by replacing text, not by git.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.other_base import other_base
from support.patch_project import BASE_FILES, Project, git, read_files, result_files, sub

# Lines above every hunk: each moves, and none of them is near one.
MOVED = {
    "lib/a.py": (b"line 0\n", b"line -2\nline -1\nline 0\n"),
    "lib/crlf.py": (b"line 0\r\n", b"first\r\nline 0\r\n"),
}
SHARED = ["../../patch/one.patch", "../../patch/two.patch"]


def expected(edits: dict[str, tuple[bytes, bytes]]) -> dict[str, bytes | str]:
    files = result_files()
    for name, edit in edits.items():
        sub(files, name, *edit)
    return files


def names(project: Project) -> list[str]:
    return (project.root / "bases/other/series").read_text().split()


@pytest.fixture
def moved(project: Project, checkout: Path, tmp_path: Path) -> Path:
    """A pristine checkout of the base "other", to which the series was carried over."""
    other = other_base(project, tmp_path / "other", MOVED)
    code, said = project.main(other, "--port-from", checkout)
    assert code == 0 and "2 patches shared with syn, 0 of other's own" in said, said
    return other


def test_a_patch_that_differs_in_line_numbers_exists_once(
    project: Project, checkout: Path, moved: Path
) -> None:
    assert names(project) == SHARED and not list((project.root / "bases/other").glob("*.patch"))
    for args, code in (
        (["--status"], 20),
        (["--check"], 0),
        ([], 0),
        (["--status"], 0),
        (["--export"], 0),
    ):
        found, text = project.main(moved, *args)
        assert found == code, text
    assert "nothing to export" in text
    assert read_files(moved) == expected(MOVED)
    again, said = project.main(moved, "--port-from", checkout)
    assert again == 0 and "wrote" not in said and "removed" not in said
    assert project.main(moved, "--revert")[0] == 0
    assert git(moved, "status", "--porcelain") == ""
    assert project.main(checkout)[0] == 0 and read_files(checkout) == result_files()


def test_a_patch_of_its_own_becomes_shared(
    project: Project, checkout: Path, tmp_path: Path
) -> None:
    """What the line numbers of an earlier day had made a copy goes when it is carried over."""
    other = other_base(project, tmp_path / "other", MOVED)
    folder = project.root / "bases/other"
    (folder / "series").write_text("one.patch\n../../patch/two.patch\n")
    (folder / "one.patch").write_bytes((project.root / "patch/one.patch").read_bytes())
    code, said = project.main(other, "--port-from", checkout)
    assert code == 0 and f"removed {folder}/one.patch" in said
    assert names(project) == SHARED


def test_an_uncertain_place_is_refused_and_ported_as_a_patch_of_its_own(
    project: Project, checkout: Path, tmp_path: Path
) -> None:
    """The context of a hunk stands twice on the other base: git alone would take the nearer."""
    twice = {"lib/a.py": (b"line 0\n", b"line 1\nline 2\nline 3\nline 0\n")}
    other = other_base(project, tmp_path / "other", twice)
    series = project.root / "bases/other/series"
    series.write_text("\n".join(SHARED) + "\n")
    git(other, "apply", "--check", str(project.root / "patch/one.patch"))
    for command in ("--check", "--lock", "--status"):
        code, text = project.main(other, command)
        assert code == 5 and "hunk 1 of 2: its context occurs more than once" in text, text
        assert "one.patch: lib/a.py" in text and "--port-from" in text
    series.write_text("")
    code, said = project.main(other, "--port-from", checkout)
    # After one.patch the place of two.patch is certain.
    assert code == 0 and names(project) == ["one.patch", SHARED[1]], said
    assert project.main(other)[0] == 0
    # The merge changes the line that stands where the home base has it, below the inserted ones.
    files = expected({})
    content = files["lib/a.py"]
    assert isinstance(content, bytes)
    files["lib/a.py"] = b"line 1\nline 2\nline 3\n" + content
    assert read_files(other) == files


def test_the_locked_result_is_the_proof(project: Project, moved: Path) -> None:
    """A hunk that lands elsewhere by a later change of the patch is refused before any write."""
    patch = project.root / "patch/one.patch"
    text = patch.read_bytes()
    changed = text.replace(b" line 29\n-line 30\n line 31\n", b" line 20\n-line 21\n line 22\n")
    assert changed != text
    patch.write_bytes(changed)
    code, said = project.main(moved)
    assert code == 6 and "lib/ would be" in said
    assert read_files(moved)["docs/read.txt"] == BASE_FILES["docs/read.txt"]
    assert git(moved, "status", "--porcelain") == ""


def test_on_its_home_base_no_hunk_moves(project: Project, checkout: Path, moved: Path) -> None:
    """The exact blobs are asked for where the patch was made, and only there."""
    patch = project.root / "patch/one.patch"
    blob = git(checkout, "rev-parse", "HEAD:lib/a.py")
    patch.write_bytes(patch.read_bytes().replace(blob.encode(), b"1" * 40))
    code, said = project.main(checkout, "--lock")
    assert code == 5 and "one.patch: lib/a.py: made for blob 1111" in said
    assert project.main(moved, "--lock")[0] == 0


def test_edits_go_to_patches_of_its_own(project: Project, checkout: Path, moved: Path) -> None:
    assert project.main(moved)[0] == 0
    shared = {p: p.read_bytes() for p in (project.root / "patch").iterdir()}
    path = moved / "lib/a.py"
    path.write_bytes(path.read_bytes() + b"of the other base\n")
    code, said = project.main(moved, "--export")
    assert code == 11 and "shared" in said and "two.patch" in said
    code, said = project.main(moved, "--export", "--to", "own.patch")
    assert code == 0, said
    assert names(project) == [*SHARED, "own.patch"]
    assert {p: p.read_bytes() for p in shared} == shared
    files = expected(MOVED)
    sub(files, "lib/a.py", b"line 39\n", b"line 39\nof the other base\n")
    clone = project.clone(moved.with_name("again"))
    git(clone, "fetch", "-q", str(moved), "HEAD")
    git(clone, "checkout", "-q", "FETCH_HEAD")
    assert project.main(clone)[0] == 0 and read_files(clone) == files


def test_new_diffs_have_the_context_that_makes_their_place_certain(
    project: Project, checkout: Path
) -> None:
    path, block = checkout / "lib/rep.txt", b"same\nother\n"
    path.write_bytes(b"top\n" + block * 6 + b"end\n")
    git(checkout, "add", "lib/rep.txt")
    git(checkout, "commit", "-qm", "repetition")
    base = project.root / "bases/syn/base.json"
    head = git(checkout, "rev-parse", "HEAD")
    base.write_text(base.read_text().replace(project.base.commit, head))
    assert project.main(checkout, "--lock")[0] == 0 and project.main(checkout)[0] == 0
    path.write_bytes(b"top\n" + block * 5 + b"same\nnew\nend\n")
    assert project.main(checkout, "--export", "--to", "three.patch")[0] == 0
    diff = (project.root / "patch/three.patch").read_bytes()
    # "same, other, end" stands once: one line of context is enough.
    assert b"\n@@ -12,3 +12,3 @@\n same\n-other\n+new\n end\n" in diff
    path.write_bytes(b"top\nsame\nnew\n" + block * 5 + b"end\n")
    assert project.main(checkout, "--export")[0] == 0
    diff = (project.root / "patch/three.patch").read_bytes()
    # "same, other, same" stands five times; with "top" and one more line it stands once.
    assert b"\n@@ -1,5 +1,5 @@\n top\n same\n-other\n+new\n same\n other\n" in diff
