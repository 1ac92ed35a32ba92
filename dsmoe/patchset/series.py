"""The series and its diffs, read as bytes; overlay files; the digest of both.

A patch file is a DEP-3 header (everything before the first ``diff --git``) and a git diff. Hunks
are walked by their counts, so that no content line can be taken for a header.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from dsmoe.common.errors import SeriesBroken
from dsmoe.patchset.authoring.publish import finish
from dsmoe.patchset.base import Base

_HUNK = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_INDEX = re.compile(rb"^index ([0-9a-f]+)\.\.([0-9a-f]+)(?: (\d{6}))?\r?$")
_JUNK_NAMES = ("__pycache__", ".DS_Store")
_JUNK_ENDINGS = (".pyc", ".pyo", ".orig", ".rej", "~")


@dataclass(frozen=True)
class Hunk:
    """Line numbers count from 1, as in the ``@@`` line; ``added`` counts ``+`` lines."""

    old_start: int
    new_start: int
    added: int


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


@dataclass(frozen=True)
class Series:
    """The patches of a base in order, and the overlay: target path -> source file."""

    base: Base
    patches: tuple[Patch, ...]
    overlay: dict[str, Path]
    digest: str


def read_names(path: Path) -> list[str]:
    """The patch names in a series file; ``#`` starts a comment, empty lines are skipped."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SeriesBroken(f"cannot read the series {path}: {error.strerror}") from None
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def name_in(names: Sequence[str], wanted: str) -> int | None:
    """The number of the patch called ``wanted``, in full or by its file name alone."""
    for number, name in enumerate(names):
        if wanted in (name, Path(name).name):
            return number
    return None


def load_series(base: Base) -> Series:
    """Read the series and the overlay of ``base``; ``SeriesBroken`` lists unreadable patches."""
    finish(base.series.parent)  # an export that was killed between its renames
    patches, problems = [], []
    for name in read_names(base.series):
        try:
            patches.append(read_patch(base.series.parent / name, name))
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise SeriesBroken(f"{base.series}: {len(problems)} patches cannot be read", problems)
    overlay = overlay_files(base.overlays)
    return Series(base, tuple(patches), overlay, digest_of(base, patches, overlay))


def read_patch(path: Path, name: str = "") -> Patch:
    """Read one patch file; ``ValueError`` when it is no git diff."""
    data = path.read_bytes()
    start = 0 if data.startswith(b"diff --git ") else data.find(b"\ndiff --git ") + 1
    if start == 0 and not data.startswith(b"diff --git "):
        return Patch(name or path.name, path, data, b"", ())
    header, diff = data[:start], data[start:]
    return Patch(name or path.name, path, header, diff, tuple(parse_diff(diff)))


def parse_diff(diff: bytes) -> Iterator[FileDiff]:
    """The files of a git diff; ``ValueError`` with the line number where it is no such diff."""
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
    first, added = at, 0
    at += 1
    while old > 0 or new > 0 or (at < len(lines) and lines[at].startswith(b"\\")):
        kind = lines[at][:1] if at < len(lines) else b""
        if kind not in (b" ", b"+", b"-", b"\\"):
            raise ValueError(f"line {at + 1} of the diff: the hunk of line {first + 1} ends early")
        old -= kind in (b" ", b"-")
        new -= kind in (b" ", b"+")
        added += kind == b"+"
        at += 1
    return at, Hunk(old_start, new_start, added)


def _path_of(line: bytes) -> str:
    rest = line[len(b"diff --git ") :].rstrip(b"\r")
    if rest.startswith(b'"'):
        first = rest[: rest.index(b'" ') + 1]
        name = ast.literal_eval("b" + first.decode("ascii"))
    else:
        name = rest[: (len(rest) - 1) // 2]
    if not name.startswith(b"a/"):
        raise ValueError(f"unexpected file header {line!r}")
    return os.fsdecode(name[2:])


def is_junk(path: str) -> bool:
    """Caches and leftovers that are never part of the overlay."""
    parts = path.split("/")
    return any(part in _JUNK_NAMES for part in parts) or parts[-1].endswith(_JUNK_ENDINGS)


def overlay_files(folders: tuple[Path, ...]) -> dict[str, Path]:
    """Target path -> source file over all overlay folders; a later folder wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                source = Path(root) / name
                path = source.relative_to(folder).as_posix()
                if not is_junk(path) and path != ".gitkeep":
                    found[path] = source
    return dict(sorted(found.items()))


def overlay_mode(source: Path) -> str:
    """The git mode of an overlay file."""
    if source.is_symlink():
        return "120000"
    return "100755" if os.access(source, os.X_OK) else "100644"


def overlay_content(source: Path) -> bytes:
    """The bytes that git stores for an overlay file (a link's target for a link)."""
    return os.fsencode(os.readlink(source)) if source.is_symlink() else source.read_bytes()


def digest_of(base: Base, patches: Sequence[Patch], overlay: Mapping[str, Path]) -> str:
    """sha256 over the base's commit, the patches in order and the overlay files."""
    total = hashlib.sha256()
    parts = [("base", base.commit.encode())]
    parts += [(patch.name, patch.header + patch.diff) for patch in patches]
    parts += [
        (f"{path} {overlay_mode(source)}", overlay_content(source))
        for path, source in overlay.items()
    ]
    for name, content in parts:
        total.update(f"{name}\0{len(content)}\0".encode("utf-8", "surrogateescape"))
        total.update(content)
    return total.hexdigest()
