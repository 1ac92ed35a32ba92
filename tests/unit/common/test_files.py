"""What a user names is read and written only where that can end: no device, no pipe, no folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from support import ROOT
from support.commands import dsmoe

from dsmoe.common.files import read_input, refuse_output, write_atomically, write_output


@pytest.fixture
def odd(tmp_path: Path) -> list[Path]:
    """A pipe, a folder, a socket, a device."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    return [tmp_path / "pipe", tmp_path / "folder", tmp_path / "socket", Path("/dev/null")]


def kinds(paths: list[Path]) -> list[int]:
    return [path.stat().st_mode for path in paths]


def test_no_other_kind_of_file_is_replaced(odd: list[Path], tmp_path: Path) -> None:
    before = kinds(odd)
    for path in odd:
        link = tmp_path / f"to-{path.name}"
        link.symlink_to(path)
        for place in (path, link):
            with pytest.raises(OSError, match=r"not a regular file, but a"):
                write_output(place, b"new")
            with pytest.raises(OSError, match=r"not a regular file, but a"):
                refuse_output(place)
        with pytest.raises(OSError, match=r"not a regular file, but a"):
            write_atomically(path, b"new")
    assert kinds(odd) == before


def test_no_other_kind_of_file_is_read(odd: list[Path]) -> None:
    for path in odd:
        with pytest.raises(OSError, match=r"not a regular file|No such device"):
            read_input(path)


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("new/file")
    write_output(tmp_path / "link", b"new")
    write_output(tmp_path / "dangling", b"made")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "new/file").read_bytes() == b"made"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file", "link", "new"]


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="more than"):
        read_input(tmp_path / "large")


def test_an_output_below_a_file_is_refused_before_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file/below", tmp_path / "file/far/below"):
        with pytest.raises(OSError, match=r"[Nn]ot a (folder|directory)"):
            refuse_output(path)
    refuse_output(tmp_path / "new/file")
    assert not (tmp_path / "new").exists()


NOBODYS = "~no-such-user/x"


@pytest.mark.parametrize(
    "words",
    [
        f"export none --to {NOBODYS}",
        f"export {NOBODYS} --to x",
        f"evaluate {NOBODYS}",
        f"generate {NOBODYS} text",
        f"train 1 --save {NOBODYS}",
        f"train 1 --load {NOBODYS}",
        f"train 1 --save x --tensorboard {NOBODYS}",
        f"run 1 --dry-run --output {NOBODYS}",
        f"run 1 --dry-run --data {NOBODYS}",
        f"run 1 --dry-run --tokenizer {NOBODYS}",
        f"run 1 --dry-run --deepspeed {NOBODYS}",
        f"calibrate --output {NOBODYS}",
        f"plan 1 --cluster {NOBODYS}",
        f"defects --against {NOBODYS}",
        f"converge --data {NOBODYS}",
    ],
)
def test_the_home_of_nobody(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dsmoe(*words.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{NOBODYS}: found no such user" in said, said
    assert not list(tmp_path.iterdir())


def test_one_function_knows_home() -> None:
    for path in (ROOT / "dsmoe").rglob("*.py"):
        if path.name != "files.py" and "proofs" not in path.parts:
            assert ".expanduser()" not in path.read_text(encoding="utf-8"), path
