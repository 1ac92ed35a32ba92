"""The documents of a text, in pieces: a file is one, or each line of a .jsonl(.gz) file is.

Nothing is held whole but one line: a file of any size goes through little memory.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import IO, Any, Counter, Iterable, Iterator, NamedTuple, Sequence

from dsmoe.benchmark.data.sources import Source, cut_pieces, is_lines, read_pieces
from dsmoe.common.errors import DataError

LINE_BYTES = 64 << 20
BATCH_BYTES = 4 << 20
BATCH_PIECES = 4096


class Piece(NamedTuple):
    """Some bytes of a document; ``end``: the last ones. ``read``: bytes of the files so far."""

    data: bytes
    end: bool
    held: bool
    read: int


class Documents:
    """Goes through :meth:`pieces` and counts: documents, those held out, what was left out.

    ``content``: the sha256 of names and bytes. ``left``: the bytes that may still be taken.
    """

    def __init__(self, field: str, held_out: float, cap: int | None) -> None:
        self.field, self.share, self.left = field, held_out, cap
        self.count, self.held = 0, 0
        self.left_out: Counter[str] = Counter()
        self.content = hashlib.sha256()
        self._lines = 0

    def pieces(self, train: Sequence[Source], kept: Sequence[Source]) -> Iterator[Piece]:
        """The pieces of all documents, those of ``train`` first; lines are split as they come.

        Raises :class:`DataError` for a file that cannot be read.
        """
        if self.left is not None:
            self.left -= sum(s.size for s in [*train, *kept] if not is_lines(s.path))
        read = 0
        for source in [*train, *kept]:
            if is_lines(source.path):
                yield from self._of_lines(source, read, bool(kept))
            else:
                parts = read_pieces(source.path)
                yield from self._document(source.name, source.size, parts, source in kept, read)
            read += source.size

    def _document(
        self, name: str, size: int, parts: Iterable[bytes], held: bool, read: int
    ) -> Iterator[Piece]:
        self.count, self.held = self.count + 1, self.held + held
        self.content.update(f"{name}\0{size}\0".encode("utf-8", "replace"))
        for data in parts:
            self.content.update(data)
            read += min(size, len(data))
            yield Piece(data, False, held, read)
        yield Piece(b"", True, held, read)

    def _of_lines(self, source: Source, read: int, any_kept: bool) -> Iterator[Piece]:
        for number, (at, line) in enumerate(lines_of(source.path), 1):
            text, problem = text_of(line, self.field)
            if problem:
                self.left_out[problem] += 1
                continue
            data = text.encode("utf-8", "replace")  # halves of characters are no UTF-8
            if self.left is not None:
                self.left -= len(data)
                if self.left < 0:
                    return
            name = f"{source.name}:{number}"
            held = self._is_held(name, any_kept)
            for piece in self._document(name, len(data), cut_pieces(data), held, 0):
                yield piece._replace(read=read + min(at, source.size))

    def _is_held(self, name: str, any_kept: bool) -> bool:
        """By the hash of the name; of two or more lines without another document, one at least."""
        self._lines += 1
        if not self.share or (self._lines == 1 and not any_kept):
            return False
        if self._lines == 2 and not self.held and not any_kept:
            return True
        rank = int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], "big")
        return rank < self.share * 2**64


def text_of(line: bytes, field: str) -> tuple[str, str | None]:
    """(text, None) of a line of JSON, or ("", why it is left out)."""
    if len(line) > LINE_BYTES:
        return "", f"line over {LINE_BYTES >> 20} MiB"
    if not line.strip():
        return "", "empty line"
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        return "", "line without JSON"
    text = found.get(field) if isinstance(found, dict) else None
    if not isinstance(text, str):
        return "", f"line without a text {field!r}"
    return text, None if text else f"line with an empty {field!r}"


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """(bytes of the file read so far, line); a line that is too long comes as its beginning."""
    try:
        with path.open("rb") as raw:
            packed = path.suffix.lower() == ".gz"
            file: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            while True:
                line = file.readline(LINE_BYTES + 1)
                if not line:
                    return
                rest = line
                while len(rest) > LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(LINE_BYTES + 1)
                yield raw.tell(), line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: damaged gzip file ({error}); expected lines of JSON: get it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """``pieces`` in lists of some megabytes, which a tokenizer shares out over all cores."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.data)
        if size >= BATCH_BYTES or len(batch) >= BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
