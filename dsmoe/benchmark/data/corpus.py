"""Text as token pairs in a cache: found, encoded, split by document, ready to sample.

    corpus = prepare(Path("cache"))                     # the standard library's sources, as bytes
    corpus = prepare(Path("cache"), ["notes/", "a.txt"], tokenizer="tokenizer.json")
    corpus = prepare(Path("cache"), ["data/small-webtext"])    # an existing .bin/.idx pair
    corpus.check_vocabulary(model_vocab)
    corpus.train, corpus.held_out                       # token arrays [N], memory-mapped
    corpus = prepare(Path("cache"), ["web.jsonl.gz"], field="content")   # a document a line

Every document ends with the end-of-document id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Iterator, Sequence

import numpy as np
from filelock import FileLock, Timeout

from dsmoe.benchmark.data import tokenizer as tokenizers
from dsmoe.benchmark.data.documents import Documents, batches
from dsmoe.benchmark.data.indexed_dataset import PairWriter, TokenPair, smallest_dtype
from dsmoe.benchmark.data.pair_names import is_pair
from dsmoe.benchmark.data.sources import (
    TEXT_FIELD,
    Source,
    Survey,
    in_words,
    is_lines,
    refuse_field,
    survey,
)
from dsmoe.benchmark.data.tokenizing_progress import Tokenizing
from dsmoe.common.errors import DataError, EnvironmentProblem
from dsmoe.common.files import expanded, read_input, write_output
from dsmoe.common.places import another_place

FORMAT = 1
LOCK_SECONDS = 600
NAMES = {False: "train", True: "held_out"}


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
    # What of the text is no document, by reason: how many files and lines.
    left_out: dict[str, int] = field(default_factory=dict)

    def check(self) -> None:
        """Raises TypeError where a field has another kind: a stored one may have been edited."""
        for name, value in vars(self).items():
            kinds = {"fingerprint": str, "content": str, "tokenizer": str, "left_out": dict}
            kind: type = kinds.get(name, int)
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
    field: str = TEXT_FIELD,
    known: CorpusInfo | None = None,
    surveyed: Survey | None = None,
) -> Corpus:
    """The corpus of ``paths``, from the cache folder if nothing changed, else built there.

    ``paths``: files, folders or globs of text, or one prefix of a ``.bin``/``.idx`` pair; none
    means the standard library. ``held_out``: the share of documents kept for evaluation, chosen
    by a hash of their names; a corpus of two or more documents keeps at least one, one document
    keeps none; lines of JSON, whose text is their ``field``, are kept as documents.Documents says.
    ``cap``: see sources.survey. ``known``: what another process has just found; where that is
    still there, the text is not looked at again, which takes seconds for a folder of many files.
    ``surveyed``: what sources.survey has just said of the same ``paths`` and ``cap``.
    Processes that prepare the same corpus at once wait for the first, also across machines that
    share the folder.

    Raises :class:`DataError` for text or tokenizer problems, and EnvironmentProblem for a cache
    that cannot be written, each in one line.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held-out share {held_out}: expected a number from 0 to below 1")
    if is_pair(paths):
        refuse_field(field, [])
        return _from_pair(str(expanded(paths[0])), held_out, known)
    encoder = tokenizers.load_tokenizer(tokenizer, end_name)
    request = [str(expanded(path).absolute()) for path in paths]
    settings = [FORMAT, encoder.identity, held_out] + ([field] if field != TEXT_FIELD else [])
    folder = cache / _digest(settings + [request, cap])[:16]
    source = ", ".join(map(str, paths)) or "the standard library"
    if known:
        with _locked(cache, folder):
            if _read_info(folder, known.fingerprint) is not None:
                return _open(folder, source, known.fingerprint)
    sources, left_out = surveyed or survey(paths, cap)
    refuse_field(field, [source.path for source in sources])
    files = [[s.name, str(s.path), s.size, s.changed] for s in sources]
    fingerprint = _digest(settings + files + ([left_out] if left_out else []))
    with _locked(cache, folder):
        if _read_info(folder, fingerprint) is None:
            found = Documents(field, held_out, cap)
            found.left_out.update(left_out)
            _build(folder, sources, encoder, found, fingerprint)
        return _open(folder, source, fingerprint)


@contextlib.contextmanager
def _locked(cache: Path, folder: Path) -> Iterator[None]:
    """With the cache made, and no other process at ``folder`` in it. Raises DataError, and
    EnvironmentProblem where it cannot be written."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock", timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise DataError(
            f"{folder}.lock: held by another process for {LOCK_SECONDS} s; end it or remove the "
            "file"
        ) from error
    except OSError as error:
        raise EnvironmentProblem(
            f"{cache}: the cache cannot be written: {error.strerror}; {another_place(cache)}"
        ) from error


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
    folder: Path, sources: list[Source], encoder: Any, found: Documents, fingerprint: str
) -> None:
    """Writes the whole folder beside its place, then renames it there. The lock is held."""
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    new = folder.with_name(f".{folder.name}.{os.getpid()}")
    new.mkdir()
    try:
        tokens, largest = _write(new, sources, encoder, found)
        info = CorpusInfo(
            fingerprint=fingerprint,
            content=found.content.hexdigest(),
            tokenizer=encoder.identity,
            documents=found.count,
            held_out_documents=found.held,
            train_tokens=tokens[False],
            held_out_tokens=tokens[True],
            largest_id=largest,
            end_of_document=encoder.end_of_document,
            left_out=dict(sorted(found.left_out.items())),
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


def _write(
    folder: Path, sources: list[Source], encoder: Any, found: Documents
) -> tuple[dict[bool, int], int]:
    """The tokens of the documents that are trained on and held out, and the largest id."""
    kept = split([s for s in sources if not is_lines(s.path)], found.share)[1]
    train = [source for source in sources if source not in set(kept)]
    tokens, largest = {False: 0, True: 0}, int(encoder.end_of_document)
    end = np.array([encoder.end_of_document])
    writers: dict[bool, PairWriter] = {}
    total = sum(source.size for source in sources)
    with contextlib.ExitStack() as stack, Tokenizing(total) as progress:
        for batch in batches(found.pieces(train, kept)):
            for piece, ids in zip(batch, encoder.encode([piece.data for piece in batch])):
                if piece.held not in writers:
                    made = PairWriter(
                        folder / NAMES[piece.held], smallest_dtype(encoder.vocab_size)
                    )
                    writers[piece.held] = stack.enter_context(made)
                writers[piece.held].append(ids)
                if ids.size:
                    largest = max(largest, int(ids.max()))
                if piece.end:
                    writers[piece.held].add_document(end)
                tokens[piece.held] += ids.size + piece.end
            progress.at(batch[-1].read)
    if False not in writers:
        raise DataError(
            f"{in_words(found.count, found.left_out)}: found no text to train on; expected lines "
            f'like {{"{found.field}": "some text"}}, or another field with --text-field'
        )
    return tokens, largest


def _from_pair(prefix: str, held_out: float, known: CorpusInfo | None) -> Corpus:
    """An existing pair, used where it lies; the last documents are the held-out ones.

    All tokens are read for the largest id, but not where the pair is ``known``.
    """
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
    fingerprint = _digest([FORMAT, content, held_out])
    same = known and known.fingerprint == fingerprint
    info = CorpusInfo(
        fingerprint=fingerprint,
        content=content,
        tokenizer="unknown (existing pair)",
        documents=documents,
        held_out_documents=kept,
        train_tokens=cut,
        held_out_tokens=pair.tokens.size - cut,
        largest_id=known.largest_id if known and same else pair.max_id(),
        end_of_document=None,
    )
    kept_tokens = pair.tokens[cut:] if cut < pair.tokens.size else None
    return Corpus(prefix, pair.tokens[:cut], kept_tokens, info)
