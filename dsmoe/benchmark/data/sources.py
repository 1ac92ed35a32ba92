"""Which files are the text: the standard library's sources, or what the user names."""

from __future__ import annotations

import glob
import gzip
import io
import os
import re
import stat
import sysconfig
import zlib
from pathlib import Path
from typing import IO, Counter, Iterator, Mapping, NamedTuple, Sequence

from dsmoe.benchmark.data.pair_names import is_pair, pair_paths
from dsmoe.common.errors import DataError
from dsmoe.common.files import expanded, is_folder

STDLIB_CAP = 8_000_000
PIECE_BYTES = 1 << 20
HEAD_BYTES = 8192
TEXT_FIELD = "text"
LINES = (".jsonl", ".jsonl.gz")
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages"}


class Source(NamedTuple):
    """A file of one document, or of one a line (:func:`is_lines`): its name in the corpus, its
    path, its size in bytes, its change time in ns, its device and number there."""

    name: str
    path: Path
    size: int
    changed: int
    file: tuple[int, int] = (0, 0)


def is_lines(path: Path) -> bool:
    """Whether each line of the file is a document in JSON."""
    return path.name.lower().endswith(LINES)


def refuse_field(field: str, paths: Sequence[Path]) -> None:
    """Raises :class:`DataError` for a field's name where no file has lines of JSON."""
    if field != TEXT_FIELD and not any(map(is_lines, paths)):
        raise DataError(
            f"--text-field {field}: found no {' or '.join(LINES)} file in the text, whose lines "
            "would have it; leave it out, or name such files with --data"
        )


def standard_library() -> list[Source]:
    """The .py files of this Python's standard library, by name; test suites are left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = _folder(root, SKIPPED_FOLDERS, Counter())
    return [source for source in found if source.path.suffix == ".py"]


class Survey(NamedTuple):
    """The files, and how many files and folders were left out, by reason."""

    sources: list[Source]
    left_out: Counter[str]


def in_words(documents: int, left_out: Mapping[str, int]) -> str:
    """One line: how many documents, and what was left out and why."""
    words = f"{documents:,} document{'s' if documents != 1 else ''}"
    if not left_out:
        return words
    reasons = (f"{n:,} {why if n == 1 else _several(why)}" for why, n in sorted(left_out.items()))
    return f"{words}; left out: {', '.join(reasons)}"


def _several(why: str) -> str:
    """A reason to leave one thing out, for more: "folder in a glob" as "folders in a glob"."""
    return re.sub(r"\b(file|folder|line|link)\b", r"\1s", why, count=1)


def find_sources(paths: Sequence[str] = (), cap: int | None = None) -> list[Source]:
    """The documents of :func:`survey`."""
    return survey(paths, cap).sources


def survey(paths: Sequence[str] = (), cap: int | None = None) -> Survey:
    """The documents of ``paths`` (files, folders, globs), or of the standard library if none.

    Order: as the paths are given, names sorted within a folder or glob; a file met twice counts
    once. Folders are read whole but for hidden files, and for what is counted as left out: empty
    files, files that hold no text, FIFOs and the like, dangling links, what may not be read, and
    the folders that a glob matches. Sources have absolute paths.
    ``cap`` in bytes ends the list before the document that would exceed it (default: 8 MB for the
    standard library, none for named paths); documents.Documents holds lines of JSON to it.

    Raises :class:`DataError` for a path that is missing or cannot be looked at, a named file that
    is empty, no text or not a regular file, a token pair beside other paths, and a choice that
    holds no text.
    """
    left_out: Counter[str] = Counter()
    if not paths:
        found = standard_library()
        cap = STDLIB_CAP if cap is None else cap
    else:
        if len(paths) > 1:
            _refuse_pairs(paths)
        found = [source for path in paths for source in _named(str(path), left_out)]
    chosen: list[Source] = []
    total = 0
    for source in _once(found):
        size = 0 if is_lines(source.path) else source.size
        if cap is not None and total + size > cap:
            break
        chosen.append(source)
        total += size
    if not chosen:
        where = ", ".join(map(str, paths)) if paths else "the standard library"
        limit = "" if cap is None else f" within {cap} bytes"
        if left_out:
            limit += f" ({in_words(0, left_out)})"
        raise DataError(f"{where}: no text found{limit}; name files or folders that hold text")
    return Survey(chosen, left_out)


def _once(found: Sequence[Source]) -> Iterator[Source]:
    """``found`` without files that were met before under another path."""
    met: dict[tuple[int, int], set[str]] = {}
    shared = {file for file, count in Counter(s.file for s in found).items() if count > 1}
    for source in found:
        # Two hard links are two documents. Paths are resolved for few files: each takes as many
        # system calls as it has folders.
        if source.file in shared:
            place = os.path.realpath(source.path)
            if place in met.setdefault(source.file, set()):
                continue
            met[source.file].add(place)
        yield source


def _refuse_pairs(paths: Sequence[str]) -> None:
    """Raises :class:`DataError` for a token pair among ``paths``, of which there are several."""
    for path in paths:
        if is_pair([path]) and not is_folder(expanded(path)):
            prefix = pair_paths(path)[0].with_suffix("")
            raise DataError(
                f"{path:.200}: found a token pair beside other paths; expected one pair alone, or "
                f"text: give --data {prefix} and nothing else, or leave the pair out"
            )


def _named(path: str, left_out: Counter[str]) -> list[Source]:
    place = expanded(path).absolute()
    try:
        kind = place.stat().st_mode
    except OSError as error:
        if glob.has_magic(path):
            return _matches(path, str(place), left_out)
        raise DataError(
            f"{path:.200}: {_why_not_there(place, error)}; expected text to train on: a file, a "
            "folder or a glob"
        ) from error
    if stat.S_ISDIR(kind):
        return _folder(place, set(), left_out)
    found = _source(place, place.name)
    if isinstance(found, Source):
        return [found]
    raise DataError(f"{path:.200}: {found}; expected a file or folder of text in UTF-8")


def _why_not_there(place: Path, error: OSError) -> str:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"cannot be looked at: {error.strerror}"
    if place.is_symlink():
        return f"a link to {os.readlink(place)}, which is not there"
    return "no such file or folder"


def _matches(path: str, pattern: str, left_out: Counter[str]) -> list[Source]:
    """The files of a glob. A folder that it matches counts as left out, unless a match is in it."""
    matches = sorted(_glob(pattern, left_out))
    if not matches:
        raise DataError(f"{path:.200}: nothing that can be seen matches; expected text to train on")
    files = [Path(match) for match in matches if not is_folder(match)]
    entered = {str(folder) for file in files for folder in file.parents}
    folders = {match.rstrip(os.sep) for match in matches} - set(map(str, files))
    if folders - entered:
        left_out["folder in a glob"] += len(folders - entered)
    return [source for file in files for source in _texts(file, str(file), left_out)]


def _glob(pattern: str, left_out: Counter[str]) -> set[str]:
    """What an absolute glob matches. Its ``**`` enters no links to folders, as :func:`_folder`
    does not: the standard library's follows them, without end where two lead back."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return set(glob.glob(pattern))  # noqa: PTH207 - Path.glob takes no absolute pattern
    at = parts.index("**")
    rest = parts[at + 1 :] or ("*",)
    matches: set[str] = set()
    for root in filter(is_folder, _glob(str(Path(*parts[:at])), left_out)):
        for where, _ in _walk(root, set(), left_out):
            # a further ** goes through the same folders, which are counted here
            matches |= _glob(str(Path(glob.escape(where), *rest)), Counter())
    return {match for match in matches if not (is_folder(match) and Path(match).is_symlink())}


def _walk(
    root: str | Path, skipped: set[str], left_out: Counter[str]
) -> Iterator[tuple[str, list[str]]]:
    """Each folder below ``root`` with the names of its files; hidden folders, bytecode and what is
    ``skipped`` are not entered, links to folders and folders that may not be read are counted."""

    def unreadable(error: OSError) -> None:
        left_out["unreadable folder"] += 1

    for where, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = [
            name
            for name in folders
            if name not in skipped and name != "__pycache__" and not name.startswith(".")
        ]
        links = sum(Path(where, name).is_symlink() for name in folders)
        if links:
            left_out["link to a folder"] += links
        yield where, files


def _folder(root: Path, skipped: set[str], left_out: Counter[str]) -> list[Source]:
    """Files below ``root`` that hold text, by name; hidden ones and bytecode are left out."""
    found = []
    for where, files in _walk(root, skipped, left_out):
        for name in files:
            if not name.startswith("."):
                path = Path(where, name)
                found += _texts(path, path.relative_to(root).as_posix(), left_out)
    return sorted(found)


def _texts(path: Path, name: str, left_out: Counter[str]) -> list[Source]:
    """The file as a source; none, and counted as left out, where it holds no text."""
    found = _source(path, name)
    if isinstance(found, Source):
        return [found]
    left_out[found] += 1
    return []


def _source(path: Path, name: str) -> Source | str:
    """The file as a source, or why it is no text to train on.

    Looked at once, and by few system calls: a folder can have a hundred thousand files.
    """
    try:
        state = path.stat()
    except OSError as error:
        return "unreadable file" if isinstance(error, PermissionError) else "dangling link"
    if not stat.S_ISREG(state.st_mode):
        return "special file"
    try:
        packed = is_lines(path) and path.suffix.lower() == ".gz"
        with path.open("rb", buffering=0) as raw, gzip.open(raw) if packed else raw as file:
            begin = file.read(HEAD_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return "damaged gzip file"
    except OSError:
        return "unreadable file"
    if not begin:
        return "empty file"
    # As git and grep tell: no encoding of text but UTF-16 and UTF-32 has this byte.
    if b"\0" in begin:
        return "binary file"
    return Source(name, path, state.st_size, state.st_mtime_ns, (state.st_dev, state.st_ino))


def read_pieces(path: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """The bytes of ``path`` in pieces, as :func:`cut_pieces` has them."""
    try:
        with path.open("rb") as file:
            yield from _cut(file, piece_bytes)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def cut_pieces(data: bytes, piece_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """``data`` in pieces of at most ``piece_bytes``, cut after a line end if any.

    A cut inside a line is moved back by up to three bytes, so that no UTF-8 character is split.
    """
    return _cut(io.BytesIO(data), piece_bytes)


def _cut(file: IO[bytes], piece_bytes: int) -> Iterator[bytes]:
    rest = b""
    while True:
        block = rest + file.read(piece_bytes - len(rest))
        if len(block) < piece_bytes:
            if block:
                yield block
            return
        cut = block.rfind(b"\n") + 1 or _character_start(block)
        rest = block[cut:]
        yield block[:cut]


def _character_start(block: bytes) -> int:
    for back in range(1, 4):
        byte = block[-back]
        if byte >= 0xC0:
            return len(block) - back
        if byte < 0x80:
            break
    return len(block)
