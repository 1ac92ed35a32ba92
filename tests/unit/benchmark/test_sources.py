"""What of a folder is text, and what is said of the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsmoe.benchmark.data.sources import find_sources, in_words, survey
from dsmoe.benchmark.data.tokenizer import json_file
from dsmoe.common.errors import DataError


def test_what_is_no_text_is_counted_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("text")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0\1")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    found = survey([str(tmp_path)])
    assert [source.name for source in found.sources] == ["good.txt"]
    assert in_words(len(found.sources), found.left_out) == (
        "1 document; left out: 1 binary file, 1 dangling link, 1 empty file, 1 no regular file"
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


def test_a_tokenizer_folder_has_a_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        json_file(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert json_file(str(tmp_path)) == tmp_path / "tokenizer.json"
