"""Which files are the text: the standard library's sources, or what the user names."""

from __future__ import annotations

import glob
import os
import sysconfig
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

from dsmoe.common.errors import DataError

STDLIB_CAP = 8_000_000
PIECE_BYTES = 1 << 20
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages"}


class Source(NamedTuple):
    """One document: its name in the corpus, its path, its size in bytes, its change time in ns."""

    name: str
    path: Path
    size: int
    changed: int


def standard_library() -> list[Source]:
    """The .py files of this Python's standard library, by name; test suites are left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [source for source in _folder(root, SKIPPED_FOLDERS) if source.path.suffix == ".py"]


def find_sources(paths: Sequence[str] = (), cap: int | None = None) -> list[Source]:
    """The documents of ``paths`` (files, folders, globs), or of the standard library if none.

    Order: as the paths are given, names sorted within a folder or glob; a file met twice counts
    once. Folders are read whole but for hidden files and empty files. ``cap`` in bytes ends the
    list before the document that would exceed it (default: 8 MB for the standard library, none
    for named paths).

    Raises :class:`DataError` for a path that is missing, a named file that is empty or not a
    regular file, and a choice that holds no text.
    """
    if not paths:
        found = standard_library()
        cap = STDLIB_CAP if cap is None else cap
    else:
        found = [source for path in paths for source in _named(str(path))]
    unique: dict[str, Source] = {}
    for source in found:
        unique.setdefault(os.path.realpath(source.path), source)
    chosen: list[Source] = []
    total = 0
    for source in unique.values():
        if cap is not None and total + source.size > cap:
            break
        chosen.append(source)
        total += source.size
    if not chosen:
        where = ", ".join(map(str, paths)) if paths else "the standard library"
        limit = "" if cap is None else f" within {cap} bytes"
        raise DataError(f"{where}: no text found{limit}; name files or folders that hold text")
    return chosen


def _named(path: str) -> list[Source]:
    expanded = Path(path).expanduser()
    if expanded.is_dir():
        return _folder(expanded, set())
    if expanded.exists():
        return [_file(expanded, expanded.name)]
    # Path.glob takes no absolute pattern, so the function it is.
    pattern = str(expanded) if glob.has_magic(path) else ""
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    if not matches:
        raise DataError(f"{path}: no such file or folder; expected text to train on")
    files = [match for match in matches if Path(match).is_file() and Path(match).stat().st_size]
    return [_file(Path(match), match) for match in files]


def _folder(root: Path, skipped: set[str]) -> list[Source]:
    """Files below ``root`` that hold something, by name; hidden ones and bytecode are left out."""
    found = []
    for where, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in skipped and name != "__pycache__" and not name.startswith(".")
        ]
        for name in files:
            path = Path(where, name)
            if not name.startswith(".") and path.is_file() and path.stat().st_size:
                found.append(_file(path, path.relative_to(root).as_posix()))
    return sorted(found)


def _file(path: Path, name: str) -> Source:
    if not path.is_file():
        raise DataError(f"{path}: not a regular file; expected a file or folder of text")
    state = path.stat()
    if state.st_size == 0:
        raise DataError(f"{path}: the file is empty; expected text to train on")
    return Source(name, path, state.st_size, state.st_mtime_ns)


def read_pieces(path: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """The bytes of ``path`` in pieces of at most ``piece_bytes``, cut after a line end if any.

    A cut inside a line is moved back by up to three bytes, so that no UTF-8 character is split.
    """
    rest = b""
    try:
        with path.open("rb") as file:
            while True:
                block = rest + file.read(piece_bytes - len(rest))
                if len(block) < piece_bytes:
                    if block:
                        yield block
                    return
                cut = block.rfind(b"\n") + 1 or _character_start(block)
                rest = block[cut:]
                yield block[:cut]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _character_start(block: bytes) -> int:
    for back in range(1, 4):
        byte = block[-back]
        if byte >= 0xC0:
            return len(block) - back
        if byte < 0x80:
            break
    return len(block)
