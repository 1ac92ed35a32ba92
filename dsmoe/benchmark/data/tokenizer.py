"""Text to token ids: bytes by default, or a Hugging Face ``tokenizers`` JSON file.

Ids are never remapped. The artifact divided every id by the vocabulary size, so that all became
0 or 1; here an id outside of the model's vocabulary is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np

from dsmoe.common.errors import DataError
from dsmoe.common.files import is_file, is_folder, read_large

END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class ByteTokenizer:
    """One id for each byte value, 0 to 255, and 256 for the end of a document."""

    identity = "bytes"
    vocab_size = 257
    end_of_document = 256

    def encode(self, pieces: Sequence[bytes]) -> list[np.ndarray]:
        """Ids [n] of each piece of a document; the bytes are kept raw, whatever their encoding."""
        return [np.frombuffer(piece, dtype=np.uint8) for piece in pieces]

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes of ``ids`` [n]; ends of documents are left out."""
        ids = np.asarray(ids)
        return ids[ids < 256].astype(np.uint8).tobytes()


class JsonTokenizer:
    """A ``tokenizers`` JSON file; text is read as UTF-8 and undecodable bytes become U+FFFD.

    ``end_name`` names the end-of-document token; without it the first of END_NAMES that the
    vocabulary has is taken. A document is encoded piece by piece (see sources.read_pieces), so a
    token never spans two pieces.

    Raises :class:`DataError` when the library or the file is missing, the file is not a
    tokenizer, or no end-of-document token is found.
    """

    def __init__(self, path: Path, end_name: str | None = None) -> None:
        try:
            data = read_large(path)
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: no such tokenizer file; expected a tokenizers JSON file"
            ) from error
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read: {error.strerror}; expected a tokenizers JSON file"
            ) from error
        try:
            import tokenizers
        except ImportError as error:
            raise DataError(
                f"{path}: reading it needs the package tokenizers, which is not installed; "
                f"run: {sys.executable} -m pip install tokenizers"
            ) from error
        self._path = path
        with _library(f"{path}: not a tokenizers JSON file"):
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise DataError(f"{path}: the tokenizer has an empty vocabulary")
        wanted = (end_name,) if end_name else END_NAMES
        found = [name for name in wanted if name in vocabulary]
        if not found:
            raise DataError(
                f"{path}: no end-of-document token: the vocabulary has none of "
                f"{', '.join(wanted)}; name the right one"
            )
        self.end_of_document = int(vocabulary[found[0]])
        # Ids may have gaps: the model needs room for the largest one.
        self.vocab_size = max(vocabulary.values()) + 1
        self.identity = f"json:{hashlib.sha256(data).hexdigest()}:{found[0]}"

    def encode(self, pieces: Sequence[bytes]) -> list[np.ndarray]:
        """Ids [n] of each piece of a document, without the special tokens of a template.

        The library's threads share the pieces, on all cores; the order stays.
        """
        texts = [piece.decode("utf-8", errors="replace") for piece in pieces]
        with _library(f"{self._path}: cannot encode the text"):
            found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in found]

    def decode(self, ids: np.ndarray) -> bytes:
        """The text of ``ids`` [n] in UTF-8; ends of documents are left out."""
        kept = [int(i) for i in ids if int(i) != self.end_of_document]
        text: str = self._tokenizer.decode(kept)
        return text.encode("utf-8")


@contextlib.contextmanager
def _library(what: str) -> Iterator[None]:
    """What the tokenizers library raises becomes a DataError that begins with ``what``.

    It raises bare Exception for a bad file; an error inside its Rust code is a BaseException.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{what}: {reason}; name another file with --tokenizer") from error


def load_tokenizer(
    path: str | None = None, end_name: str | None = None
) -> ByteTokenizer | JsonTokenizer:
    """The tokenizer of ``path`` (a JSON file, or a Hugging Face folder with one), else bytes."""
    return JsonTokenizer(json_file(path), end_name) if path else ByteTokenizer()


def json_file(path: str) -> Path:
    """The tokenizers JSON file that ``path`` is, or that a Hugging Face tokenizer folder has.

    Raises :class:`DataError` for a folder without one.
    """
    place = Path(path)
    if not is_folder(place):
        return place
    if not is_file(place / "tokenizer.json"):
        raise DataError(
            f"{place}: found no tokenizer.json; expected a tokenizers JSON file, or a folder with "
            "one, as save_pretrained of a fast tokenizer writes"
        )
    return place / "tokenizer.json"


def check_vocabulary(largest_id: int, model_vocab: int, source: str) -> None:
    """Raises :class:`DataError` when ``source`` has ids that the model has no row for."""
    if largest_id >= model_vocab:
        raise DataError(
            f"{source}: token id {largest_id} is outside of the model's vocabulary of "
            f"{model_vocab} (ids 0 to {model_vocab - 1}); use a model with at least "
            f"{largest_id + 1} ids or another tokenizer"
        )
