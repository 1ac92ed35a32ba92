"""One patch file, read as bytes: a DEP-3 header and a git diff.

The header is everything before the first ``diff --git``. Hunks are walked by their counts, so
that no content line can be taken for a header.
"""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from dsmoe.patchset.inputs import is_plain_path, read_input

_HUNK = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_QUOTED = re.compile(rb'"([ !#-\[\]-~]|\\[abtnvfr"\\]|\\[0-3][0-7]{2})*"')
_INDEX = re.compile(rb"^index ([0-9a-f]+)\.\.([0-9a-f]+)(?: (\d{6}))?\r?$")


@dataclass(frozen=True)
class Hunk:
    """Line numbers count from 1, as in the ``@@`` line; ``added`` counts ``+`` lines.

    ``before`` is what the hunk must find: its context and removed lines, joined.
    """

    old_start: int
    new_start: int
    added: int
    before: bytes


@dataclass(frozen=True)
class FileDiff:
    """The change of one file: blob ids and modes before and after (None: no such file)."""

    path: str
    old_id: str | None
    new_id: str | None
    old_mode: str | None
    new_mode: str | None
    hunks: tuple[Hunk, ...]
    renames: bool = False


@dataclass(frozen=True)
class Patch:
    """One patch file: its name in the series, the header's bytes and the diff's bytes."""

    name: str
    path: Path
    header: bytes
    diff: bytes
    files: tuple[FileDiff, ...]

    @property
    def shared(self) -> bool:
        """Whether the series names a patch of another folder, that is of another base."""
        return "/" in self.name


def read_patch(path: Path, name: str = "") -> Patch:
    """Read one patch file.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is not a git diff; the message names the line.
    """
    data = read_input(path)
    start = 0 if data.startswith(b"diff --git ") else data.find(b"\ndiff --git ") + 1
    if start == 0 and not data.startswith(b"diff --git "):
        return Patch(name or path.name, path, data, b"", ())
    header, diff = data[:start], data[start:]
    return Patch(name or path.name, path, header, diff, tuple(parse_diff(diff)))


def parse_diff(diff: bytes) -> Iterator[FileDiff]:
    """The files of a git diff; ``ValueError`` names the line that is not part of one."""
    lines = diff.split(b"\n")
    at = 0
    while at < len(lines):
        if not lines[at].startswith(b"diff --git "):
            if lines[at] in (b"", b"\r") or lines[at].startswith(b"-- "):
                at += 1  # an empty line or a signature; the lint speaks about the latter
                continue
            raise ValueError(f"line {at + 1} of the diff is neither a file header nor a hunk")
        at, item = _parse_file(lines, at)
        yield item


def _parse_file(lines: list[bytes], at: int) -> tuple[int, FileDiff]:
    path = _path_of(lines[at])
    old_id = new_id = old_mode = new_mode = None
    mode = None
    renames = False
    hunks: list[Hunk] = []
    at += 1
    while at < len(lines) and not lines[at].startswith(b"diff --git "):
        line = lines[at]
        index, hunk = _INDEX.match(line), _HUNK.match(line)
        if hunk:
            at, item = _parse_hunk(lines, at, hunk)
            hunks.append(item)
            continue
        if index:
            old_id, new_id = index.group(1).decode(), index.group(2).decode()
            mode = index.group(3).decode() if index.group(3) else mode
        for key in (b"old mode ", b"deleted file mode "):
            if line.startswith(key):
                old_mode = line[len(key) :].strip().decode()
        for key in (b"new mode ", b"new file mode "):
            if line.startswith(key):
                new_mode = line[len(key) :].strip().decode()
        renames = renames or line.startswith((b"rename ", b"copy ", b"similarity "))
        at += 1
    if mode:
        old_mode = new_mode = mode
    if old_id is not None and not old_id.strip("0"):
        old_id = None
    if new_id is not None and not new_id.strip("0"):
        new_id = None
    return at, FileDiff(path, old_id, new_id, old_mode, new_mode, tuple(hunks), renames)


def _parse_hunk(lines: list[bytes], at: int, match: re.Match[bytes]) -> tuple[int, Hunk]:
    old_start, new_start = int(match.group(1)), int(match.group(3))
    old = int(match.group(2) or 1)
    new = int(match.group(4) or 1)
    first, added, before = at, 0, b""
    last = b""
    at += 1
    while old > 0 or new > 0 or (at < len(lines) and lines[at].startswith(b"\\")):
        kind = lines[at][:1] if at < len(lines) else b""
        if kind not in (b" ", b"+", b"-", b"\\"):
            raise ValueError(f"line {at + 1} of the diff: the hunk of line {first + 1} ends early")
        old -= kind in (b" ", b"-")
        new -= kind in (b" ", b"+")
        added += kind == b"+"
        if kind in (b" ", b"-"):
            before += lines[at][1:] + b"\n"
        elif kind == b"\\" and last in (b" ", b"-"):
            before = before[:-1]  # no newline at the end of the file
        last = kind
        at += 1
    return at, Hunk(old_start, new_start, added, before)


def _path_of(line: bytes) -> str:
    rest = line[len(b"diff --git ") :].rstrip(b"\r")
    if rest.startswith(b'"'):
        name = _unquoted(rest[: rest.index(b'" ') + 1])
    else:
        name = rest[: (len(rest) - 1) // 2]
    if not name.startswith(b"a/"):
        raise ValueError(f"unexpected file header {line[:200]!r}")
    path = os.fsdecode(name[2:])
    if not is_plain_path(path):
        raise ValueError(f"{path[:200]!r} is not a path inside the checkout")
    return path


def _unquoted(word: bytes) -> bytes:
    """A path in git's quotes, which are C's."""
    if not _QUOTED.fullmatch(word):
        raise ValueError(f"{word[:200]!r} is not a quoted path")
    found: bytes = ast.literal_eval("b" + word.decode("ascii"))
    return found
