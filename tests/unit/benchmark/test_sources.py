"""What of a folder is text, and what is said of the rest."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from dsmoe.benchmark.data.corpus import prepare
from dsmoe.benchmark.data.indexed_dataset import PairWriter
from dsmoe.benchmark.data.sources import find_sources, in_words, survey
from dsmoe.benchmark.data.tokenizer import json_file
from dsmoe.common.errors import DataError


def test_what_is_no_text_is_counted_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("text")
    for name in ("empty.txt", "too.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0\1")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = survey([str(tmp_path)])
    assert [source.name for source in found.sources] == ["good.txt"]
    assert in_words(len(found.sources), found.left_out) == (
        "1 document; left out: 1 binary file, 1 dangling link, 2 empty files, 1 special file"
    )


def test_a_file_that_is_met_twice_counts_once_and_a_hard_link_is_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "link.txt").symlink_to("a.txt")
    (tmp_path / "same").symlink_to(folder)
    os.link(folder / "a.txt", folder / "hard.txt")
    found = find_sources([str(folder), str(tmp_path / "same"), str(folder / "a.txt")])
    assert [source.name for source in found] == ["a.txt", "hard.txt"]


@pytest.mark.timeout(300)
def test_links_to_folders_are_counted_and_not_entered(tmp_path: Path) -> None:
    """Two links of a folder to itself have 2^40 paths, which glob.glob goes through."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("one.txt", "a/two.txt", "a/b/three.txt"):
        (tmp_path / name).write_text("text")
    for name in ("self", "too"):
        (tmp_path / name).symlink_to(".")
    names = ["a/b/three.txt", "a/two.txt", "one.txt"]
    for pattern in ("", "**", "**/*", "**/*.txt", "**/**/*.txt"):
        found = survey([str(tmp_path / pattern)])
        assert sorted(str(s.path.relative_to(tmp_path)) for s in found.sources) == names, pattern
        assert found.left_out == {"link to a folder": 2}, pattern
    assert len(find_sources([str(tmp_path / "a/**/b/*")])) == 1
    assert len(find_sources([str(tmp_path / "self/a/**")])) == 2  # a link that is named


def test_each_file_is_opened_once(tmp_path: Path, monkeypatch) -> None:
    for name in ("a.txt", "b.md", "empty"):
        (tmp_path / name).write_text("" if name == "empty" else "text")
    opened: list[str] = []
    own = Path.open
    monkeypatch.setattr(Path, "open", lambda p, *a, **k: opened.append(p.name) or own(p, *a, **k))
    assert len(find_sources([str(tmp_path)])) == 2
    assert sorted(opened) == ["a.txt", "b.md", "empty"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_counted(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "closed").mkdir(mode=0)
    assert survey([str(tmp_path)]).left_out == {"unreadable folder": 1}


def test_a_named_binary_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\1")
    with pytest.raises(DataError, match=r"a\.bin: binary file; expected .* text"):
        find_sources([str(tmp_path / "a.bin")])
    with pytest.raises(DataError, match=r"no text found \(0 documents; left out: 1 binary file\)"):
        find_sources([str(tmp_path)])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "sub/b.txt", "sub/deep/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    with PairWriter("pair") as pair:
        pair.add_document(np.arange(9))
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "lost").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["x" * 300], r"^x{200}: cannot be looked at: File name too long; expected text"),
        ([f"sub/{'x' * 300}/y"], r"^sub/x+: cannot be looked at: File name too long; expected"),
        (["round"], r"^round: cannot be looked at: Too many levels"),
        (["lost"], r"^lost: a link to nowhere, which is not there; expected text"),
        (["a.txt/b"], r"^a\.txt/b: no such file or folder; expected text"),
        (["*.no"], r"^\*\.no: nothing that can be seen matches; expected text"),
        (["pair", "a.txt"], r"^pair: found a token pair beside other paths.* --data pair and"),
        (["pair.bin", "pair.idx"], r"^pair\.bin: found a token pair beside .* --data pair and"),
        (["su*"], r"^su\*: no text found \(0 documents; left out: 1 folder in a glob\)"),
    ],
)
def test_a_path_that_cannot_be_is_named_as_it_was_typed(
    here: Path, paths: list[str], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        prepare(here / "cache", paths)
    assert not (here / "cache").exists()


def test_a_path_below_a_folder_without_rights_is_named_as_it_was_typed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path.stat

    def stat(path: Path, **more: bool) -> os.stat_result:
        if "closed" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return own(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(DataError, match=r"^closed/a: cannot be looked at: Permission denied; exp"):
        prepare(here / "cache", ["closed/a"])


def test_the_folders_of_a_glob_are_counted_where_nothing_in_them_matches(here: Path) -> None:
    found = survey(["[as]*"])
    assert [source.path for source in found.sources] == [here / "a.txt"]
    assert found.left_out == {"folder in a glob": 1}
    assert survey(["sub/**"]).left_out == {}


def test_the_files_of_a_survey_are_not_looked_at_again(here: Path, monkeypatch) -> None:
    before = survey(["a.txt", "sub"])
    plain = prepare(here / "one", ["a.txt", "sub"])
    monkeypatch.setattr("dsmoe.benchmark.data.corpus.survey", None)
    # a run's own paths are absolute: the same text, under the same fingerprint
    paths = [str(here / "a.txt"), str(here / "sub")]
    assert prepare(here / "two", paths, surveyed=before).info == plain.info


def test_a_tokenizer_folder_has_a_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        json_file(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert json_file(str(tmp_path)) == tmp_path / "tokenizer.json"
