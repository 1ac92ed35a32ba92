"""Text as token pairs in a cache: found, encoded, split by document, ready to sample.

    corpus = prepare(Path("cache"))                     # the standard library's sources, as bytes
    corpus = prepare(Path("cache"), ["notes/", "a.txt"], tokenizer="tokenizer.json")
    corpus = prepare(Path("cache"), ["data/small-webtext"])    # an existing .bin/.idx pair
    corpus.check_vocabulary(model_vocab)
    corpus.train, corpus.held_out                       # token arrays [N], memory-mapped

Every document ends with the end-of-document id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np
from filelock import FileLock, Timeout

from dsmoe.benchmark.data import tokenizer as tokenizers
from dsmoe.benchmark.data.indexed_dataset import PairWriter, TokenPair, is_pair, smallest_dtype
from dsmoe.benchmark.data.sources import Source, find_sources, read_pieces
from dsmoe.common.errors import DataError
from dsmoe.common.files import read_input, write_output

FORMAT = 1
LOCK_SECONDS = 600


@dataclass(frozen=True)
class CorpusInfo:
    """What a corpus holds; stored as corpus.json and repeated in each result record.

    ``content`` is the sha256 of the documents' names, order and bytes (for an existing pair: of
    its index file), so equal text has equal ``content`` on every machine. ``fingerprint`` also
    covers paths, change times, tokenizer and split: when it differs the cache is rebuilt.
    """

    fingerprint: str
    content: str
    tokenizer: str
    documents: int
    held_out_documents: int
    train_tokens: int
    held_out_tokens: int
    largest_id: int
    end_of_document: int | None

    def check(self) -> None:
        """Raises TypeError where a field has another kind: a stored one may have been edited."""
        for name, value in vars(self).items():
            kind = str if name in ("fingerprint", "content", "tokenizer") else int
            empty = name == "end_of_document" and value is None
            if type(value) is not kind and not empty:
                raise TypeError(f"{name} is {value!r:.40}, expected {kind.__name__}")


@dataclass(frozen=True)
class Corpus:
    """``train`` [N] and ``held_out`` [M] are views of the token files; held_out may be None."""

    source: str
    train: np.ndarray
    held_out: np.ndarray | None
    info: CorpusInfo

    def check_vocabulary(self, model_vocab: int) -> None:
        """Raises :class:`DataError` when the text has ids that the model has no row for."""
        tokenizers.check_vocabulary(self.info.largest_id, model_vocab, self.source)


def prepare(
    cache: Path,
    paths: Sequence[str] = (),
    tokenizer: str | None = None,
    end_name: str | None = None,
    held_out: float = 0.05,
    cap: int | None = None,
) -> Corpus:
    """The corpus of ``paths``, from the cache folder if nothing changed, else built there.

    ``paths``: files, folders or globs of text, or one prefix of a ``.bin``/``.idx`` pair; none
    means the standard library. ``held_out``: the share of documents kept for evaluation, chosen
    by a hash of their names; a corpus of two or more documents keeps at least one, one document
    keeps none. ``cap``: see sources.find_sources. Processes that prepare the same corpus at once
    wait for the first, also across machines that share the folder.

    Raises :class:`DataError` for text, tokenizer or cache problems, each in one line.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held-out share {held_out}: expected a number from 0 to below 1")
    if is_pair(paths):
        return _from_pair(str(paths[0]), held_out)
    encoder = tokenizers.load_tokenizer(tokenizer, end_name)
    sources = find_sources(paths, cap)
    request = [str(Path(path).expanduser().absolute()) for path in paths]
    settings = [FORMAT, encoder.identity, held_out]
    fingerprint = _digest(settings + [[s.name, str(s.path), s.size, s.changed] for s in sources])
    folder = cache / _digest(settings + [request, cap])[:16]
    source = ", ".join(map(str, paths)) or "the standard library"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock", timeout=LOCK_SECONDS):
            if _read_info(folder, fingerprint) is None:
                _build(folder, sources, encoder, held_out, fingerprint)
            return _open(folder, source, fingerprint)
    except Timeout as error:
        raise DataError(
            f"{folder}.lock: held by another process for {LOCK_SECONDS} s; end it or remove the "
            "file"
        ) from error
    except OSError as error:
        raise DataError(f"{cache}: the cache cannot be written: {error.strerror}") from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _read_info(folder: Path, fingerprint: str) -> CorpusInfo | None:
    """The stored description, or None when it is missing, stale or the files are broken."""
    try:
        info = CorpusInfo(**json.loads(read_input(folder / "corpus.json")))
        info.check()
        train = TokenPair(folder / "train")
        kept = TokenPair(folder / "held_out").tokens.size if info.held_out_tokens else 0
    except (OSError, ValueError, TypeError, RecursionError, DataError):
        return None
    whole = (info.train_tokens, info.held_out_tokens) == (train.tokens.size, kept)
    return info if whole and info.fingerprint == fingerprint else None


def _open(folder: Path, source: str, fingerprint: str) -> Corpus:
    info = _read_info(folder, fingerprint)
    if info is None:
        raise DataError(f"{folder}: the cache changed while it was written; run again")
    kept = TokenPair(folder / "held_out").tokens if info.held_out_tokens else None
    return Corpus(source, TokenPair(folder / "train").tokens, kept, info)


def split(sources: Sequence[Source], held_out: float) -> tuple[list[Source], list[Source]]:
    """(train, held-out) in the order of ``sources``; those with the smallest hashes are kept."""
    count = 0
    if held_out and len(sources) > 1:
        count = min(len(sources) - 1, max(1, round(held_out * len(sources))))
    ranked = sorted(
        sources, key=lambda s: hashlib.sha256(s.name.encode("utf-8", "replace")).digest()
    )
    kept = set(ranked[:count])
    return [s for s in sources if s not in kept], [s for s in sources if s in kept]


def _build(
    folder: Path, sources: list[Source], encoder: Any, held_out: float, fingerprint: str
) -> None:
    """Writes the whole folder beside its place, then renames it there. The lock is held."""
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}")
    new.mkdir()
    try:
        train, kept = split(sources, held_out)
        content = hashlib.sha256()
        counts: dict[str, int] = {}
        largest = 0
        for name, part in (("train", train), ("held_out", kept)):
            counts[name], top = _write(new / name, part, encoder, content) if part else (0, 0)
            largest = max(largest, top)
        info = CorpusInfo(
            fingerprint=fingerprint,
            content=content.hexdigest(),
            tokenizer=encoder.identity,
            documents=len(sources),
            held_out_documents=len(kept),
            train_tokens=counts["train"],
            held_out_tokens=counts["held_out"],
            largest_id=largest,
            end_of_document=encoder.end_of_document,
        )
        write_output(new / "corpus.json", json.dumps(asdict(info), indent=1).encode("ascii"))
        old = folder.with_name(f".{folder.name}.old")
        if folder.exists():
            folder.replace(old)
        new.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(new)


def _write(prefix: Path, sources: list[Source], encoder: Any, content: Any) -> tuple[int, int]:
    tokens, largest = 0, 0
    end = np.array([encoder.end_of_document])
    with PairWriter(prefix, smallest_dtype(encoder.vocab_size)) as writer:
        for source in sources:
            content.update(f"{source.name}\0{source.size}\0".encode("utf-8", "replace"))
            for ids in encoder.encode_pieces(_hashed(source.path, content)):
                if ids.size:
                    writer.append(ids)
                    tokens += ids.size
                    largest = max(largest, int(ids.max()))
            writer.add_document(end)
            tokens += 1
    return tokens, max(largest, encoder.end_of_document)


def _hashed(path: Path, content: Any) -> Iterator[bytes]:
    for piece in read_pieces(path):
        content.update(piece)
        yield piece


def _from_pair(prefix: str, held_out: float) -> Corpus:
    """An existing pair, used where it lies; the last documents are the held-out ones."""
    pair = TokenPair(prefix)
    documents = pair.num_documents
    kept = 0
    if held_out and documents > 1:
        kept = min(documents - 1, max(1, round(held_out * documents)))
    first_kept = int(pair.documents[documents - kept])
    cut = int(pair.starts[first_kept]) // pair.dtype.itemsize if kept else pair.tokens.size
    if cut == 0:
        raise DataError(f"{prefix}: the documents left for training hold no tokens")
    content = hashlib.sha256(pair.idx_path.read_bytes()).hexdigest()
    info = CorpusInfo(
        fingerprint=_digest([FORMAT, content, held_out]),
        content=content,
        tokenizer="unknown (existing pair)",
        documents=documents,
        held_out_documents=kept,
        train_tokens=cut,
        held_out_tokens=pair.tokens.size - cut,
        largest_id=pair.max_id(),
        end_of_document=None,
    )
    kept_tokens = pair.tokens[cut:] if cut < pair.tokens.size else None
    return Corpus(prefix, pair.tokens[:cut], kept_tokens, info)
