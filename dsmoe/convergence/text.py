"""The text of the comparison: sampled from folders, without copies, split by package.

Held-out text must be text that no arm has seen. Source folders hold many copies (vendored
packages, licences, generated files), so: equal files count once, whole top-level entries are held
out and not single files of them, and a held-out document of which much also stands in the training
text is left out. What is left in common is measured and reported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

import numpy as np

from dsmoe.benchmark.data.documents import lines_of, text_of
from dsmoe.benchmark.data.indexed_dataset import PairWriter, smallest_dtype
from dsmoe.benchmark.data.sources import (
    TEXT_FIELD,
    Source,
    find_sources,
    is_lines,
    read_pieces,
    refuse_field,
)
from dsmoe.benchmark.data.tokenizer import ByteTokenizer
from dsmoe.common.errors import DataError, EnvironmentProblem
from dsmoe.common.files import expanded, read_input, write_output
from dsmoe.common.places import another_place

FORMAT = 2
SUFFIXES = (".py", ".md", ".rst", ".txt")
# Larger files are mostly tables and generated code.
FILE_BYTES = 1 << 20
HELD_OUT = 0.05
# A line of so many bytes is seldom the same by chance.
LONG_LINE = 30
# Held-out documents with a larger share of their long lines in the training text are left out.
SEEN_SHARE = 0.25


@dataclass(frozen=True)
class TextInfo:
    """What the text holds; sizes in tokens (bytes, and one end of document each).

    ``content``: sha256 of the documents' bytes in order and of the split. ``copies``: files left
    out as equal to another. ``leaks``: held-out documents left out for what they share with the
    training text; ``shared_lines``: the share of long lines in the remaining ones that does too.
    """

    source: str
    content: str
    documents: int
    held_out_documents: int
    held_out_entries: int
    train_tokens: int
    held_out_tokens: int
    copies: int
    leaks: int
    shared_lines: float


class Document(NamedTuple):
    """A file and ``entry``, the top-level entry that it belongs to and is held out with; or a line
    of JSON, an entry of its own, with its text as ``data``."""

    source: Source
    entry: str
    data: bytes | None = None


@dataclass(frozen=True)
class StudyText:
    """The token pair ``prefix`` (.bin, .idx), whose last documents are the held-out ones."""

    prefix: Path
    info: TextInfo

    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``corpus.prepare`` that open it with this very split."""
        return {
            "paths": [str(self.prefix)],
            "held_out": self.info.held_out_documents / self.info.documents,
        }


def prepare(
    cache: Path, paths: Sequence[str], text_bytes: int, field: str = TEXT_FIELD
) -> StudyText:
    """At most ``text_bytes`` of the text in ``paths`` (none: the standard library), from the
    cache folder if nothing changed, else built there. Lines of JSON are documents, by their
    ``field``. Raises DataError, and EnvironmentProblem where the cache cannot be written.
    """
    found = _find(paths)
    refuse_field(field, [d.source.path for d in found])
    files = [[d.entry, str(d.source.path), d.source.size, d.source.changed] for d in found]
    settings = [FORMAT, text_bytes, files, field]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    folder = cache / f"convergence-{key}"
    try:
        info = _read_info(folder)
        if info is None:
            new = folder.with_name(f".{folder.name}.{os.getpid()}")
            new.mkdir(parents=True)
            try:
                info = _build(new / "text", found, text_bytes, ", ".join(paths), field)
                write_output(new / "text.json", json.dumps(asdict(info)).encode("ascii"))
                if _read_info(folder) is None:  # another process may have been faster
                    shutil.rmtree(folder, ignore_errors=True)
                    new.replace(folder)
            finally:
                shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder}: the cache cannot be written: {error.strerror}; {another_place(folder)}"
        ) from error
    return StudyText(folder / "text", info)


def _read_info(folder: Path) -> TextInfo | None:
    """The stored description; None where it is missing or broken, so that it is made again."""
    try:
        info = TextInfo(**json.loads(read_input(folder / "text.json")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    kinds = {"source": str, "content": str, "shared_lines": float}
    right = all(type(value) is kinds.get(name, int) for name, value in vars(info).items())
    return info if right and min(info.documents, info.held_out_documents) > 0 else None


def _find(paths: Sequence[str]) -> list[Document]:
    """Every document that may be taken, in an order that mixes the folders: by hash of name."""
    if not paths:
        documents = [Document(source, entry_of(source.name)) for source in find_sources()]
    else:
        documents = []
        for path in paths:
            folder = expanded(path).is_dir()
            for source in find_sources([path]):
                if not folder:  # named by itself: text, and an entry of its own
                    documents.append(Document(source, source.name))
                elif is_lines(source.path) or (
                    source.path.suffix in SUFFIXES and source.size <= FILE_BYTES
                ):
                    documents.append(Document(source, entry_of(source.name)))
    return sorted(documents, key=lambda d: _hash(d.source.name.encode("utf-8", "replace")))


def entry_of(name: str) -> str:
    """The top-level entry of a file, without version and suffix: a package and its metadata
    (``rich/text.py``, ``rich-13.0.dist-info/top_level.txt``) are one entry."""
    return re.split(r"[-.]", name.split("/")[0].lower())[0] or name


def _build(
    prefix: Path, found: list[Document], text_bytes: int, where: str, field: str
) -> TextInfo:
    where = where or "the standard library"
    documents, copies = _without_copies(_with_lines(found, field), text_bytes)
    train, kept, entries = split(documents)
    if not kept:
        raise DataError(
            f"{where}: {len(documents)} document(s) of text; expected at least 2, one to train on "
            f"and one to hold out: name more, raise --text-bytes, or name a "
            f"folder with {', '.join(SUFFIXES)} files; of lines of JSON the text is the field "
            f"{field!r} (--text-field)"
        )
    shares = seen_shares(train, kept)
    clean = [d for d, (lines, seen) in zip(kept, shares) if seen <= SEEN_SHARE * lines]
    if not clean:
        raise DataError(
            f"{where}: every held-out document repeats what is trained on; name more text"
        )
    left = [pair for pair in shares if pair[1] <= SEEN_SHARE * pair[0]]
    content = hashlib.sha256(f"{len(clean)}".encode())
    tokens = _write(prefix, [*train, *clean], content)
    held = sum(tokens[len(train) :])
    return TextInfo(
        source=where,
        content=content.hexdigest(),
        documents=len(tokens),
        held_out_documents=len(clean),
        held_out_entries=len(entries),
        train_tokens=sum(tokens) - held,
        held_out_tokens=held,
        copies=copies,
        leaks=len(kept) - len(clean),
        shared_lines=sum(seen for _, seen in left) / max(1, sum(lines for lines, _ in left)),
    )


def _with_lines(found: list[Document], field: str) -> Iterator[Document]:
    """``found``, with a document for each good line of JSON in place of its file."""
    for document in found:
        source = document.source
        if not is_lines(source.path):
            yield document
            continue
        for number, (_, line) in enumerate(lines_of(source.path), 1):
            text, problem = text_of(line, field)
            if problem is None:
                data = text.encode("utf-8", "replace")  # halves of characters are no UTF-8
                name = f"{source.name}:{number}"
                yield Document(source._replace(name=name, size=len(data)), name, data)


def _without_copies(found: Iterable[Document], text_bytes: int) -> tuple[list[Document], int]:
    """The first documents, together at most ``text_bytes``, and how many were equal to another.

    White space does not count. What is not UTF-8 is left out too.
    """
    documents, known, total, copies = [], set(), 0, 0
    for document in found:
        data = _read(document)
        if total + len(data) > text_bytes:
            continue
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        key = _hash(b" ".join(data.split()))
        if key in known:
            copies += 1
            continue
        known.add(key)
        documents.append(document)
        total += len(data)
        if total >= 0.999 * text_bytes:  # near enough: no need to read the rest for a small file
            break
    return documents, copies


def split(documents: Sequence[Document]) -> tuple[list[Document], list[Document], set[str]]:
    """(train, held-out, held-out entries): whole entries by hash of their names, while they stay
    within HELD_OUT of the bytes; the smallest one if none does, single documents if there is but
    one entry. Nothing is held out of one document.
    """
    names = [d.entry for d in documents]
    if len(set(names)) < 2:
        names = [d.source.name for d in documents]
    sizes: dict[str, int] = {}
    for name, document in zip(names, documents):
        sizes[name] = sizes.get(name, 0) + document.source.size
    room = HELD_OUT * sum(sizes.values())
    chosen: set[str] = set()
    for name in sorted(sizes, key=lambda n: _hash(n.encode("utf-8", "replace"))):
        if sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    if not chosen and len(sizes) > 1:
        chosen = {min(sizes, key=lambda n: (sizes[n], n))}
    pairs = list(zip(names, documents))
    train = [document for name, document in pairs if name not in chosen]
    return train, [document for name, document in pairs if name in chosen], chosen


def seen_shares(train: Sequence[Document], kept: Sequence[Document]) -> list[tuple[int, int]]:
    """(long lines, those of them that stand in a document of ``train``) of each of ``kept``."""
    lines = [list(_long_lines(document)) for document in kept]
    wanted = {line for document in lines for line in document}
    seen: set[bytes] = set()
    for document in train:
        seen.update(line for line in _long_lines(document) if line in wanted)
    return [(len(document), sum(line in seen for line in document)) for document in lines]


def _long_lines(document: Document) -> Iterator[bytes]:
    for line in _read(document).splitlines():
        line = line.strip()
        if len(line) >= LONG_LINE:
            yield line


def _read(document: Document) -> bytes:
    if document.data is not None:
        return document.data
    return b"".join(read_pieces(document.source.path))


def _write(prefix: Path, documents: Sequence[Document], content: Any) -> list[int]:
    """Write the pair; the tokens of each document. ``content`` takes in all bytes."""
    encoder = ByteTokenizer()
    end = np.array([encoder.end_of_document])
    tokens = []
    with PairWriter(prefix, smallest_dtype(encoder.vocab_size)) as writer:
        for document in documents:
            data = _read(document)
            content.update(f"\0{len(data)}\0".encode() + data)
            if data:
                writer.append(np.frombuffer(data, dtype=np.uint8))
            writer.add_document(end)
            tokens.append(len(data) + 1)
    return tokens


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
