"""Token files: the memory-mapped ``.bin``/``.idx`` pair of Megatron-LM, read and written.

``PREFIX.bin`` holds the tokens of all sequences, one after another, nothing else.
``PREFIX.idx`` holds, little-endian and without padding::

    9 bytes   magic "MMIDIDX\\0\\0"
    uint64    version, 1
    uint8     dtype code of the tokens: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16
    uint64    n, the number of sequences
    uint64    d, the number of entries of the document index
    int32[n]  sequence lengths in tokens
    int64[n]  sequence starts in bytes of the .bin file
    int64[d]  document index: 0, then after each document the number of sequences so far

Source: ``MMapIndexedDataset`` in megatron/data/indexed_dataset.py of Megatron-LM v1.1.5 and
later. Codes 6 and 7 are floats whose order differs between releases (6 is float64 in v1.1.5 and
in Megatron-core, float32 in others); tokens are integers, so both are refused. Megatron-core
appends an int8 mode for each sequence in multimodal files; a file whose modes are all 0 (text)
is read, any other is refused. The format has no checksum: an index of another ``.bin`` is
noticed by its length in bytes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
from array import array
from types import TracebackType

import numpy as np

from dsmoe.benchmark.data.pair_names import PathLike, pair_paths
from dsmoe.common.errors import DataError
from dsmoe.common.files import is_file

MAGIC = b"MMIDIDX\x00\x00"
LEGACY_MAGIC = b"TNTIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}


def smallest_dtype(vocab_size: int) -> np.dtype:
    """The dtype Megatron-LM picks for ``vocab_size`` ids: uint16 below 65,500, else int32."""
    return DTYPES[8] if vocab_size < 65500 else DTYPES[4]


class PairWriter:
    """Streams documents into a pair that appears under its final name only when complete.

    Memory: 4 bytes a sequence and 8 bytes a document, plus the tokens of one call. Use as a
    context manager: leaving it normally writes the index and renames both files, ``.bin`` first,
    ``.idx`` last; leaving it by an exception removes the temporary files. An older pair loses its
    index before its tokens are replaced, so no moment shows a mixed pair.

    Raises :class:`DataError` for ids outside of the dtype, sequences over 2**31-1 tokens and a pair
    without tokens, and OSError for files that cannot be written.
    """

    def __init__(self, prefix: PathLike, dtype: str | np.dtype | type = "<u2") -> None:
        self.dtype = np.dtype(dtype).newbyteorder("<")
        codes = [code for code, known in DTYPES.items() if known == self.dtype]
        if not codes:
            known = ", ".join(str(item) for item in DTYPES.values())
            raise DataError(f"{prefix}: dtype {np.dtype(dtype)} is not one of {known}")
        self._code = codes[0]
        self.bin_path, self.idx_path = pair_paths(prefix)
        self._sizes = array("i")
        self._documents = array("q", [0])
        self._open_tokens = 0
        tag = f"{os.getpid()}-{secrets.token_hex(4)}.tmp"
        self._tmp_bin = self.bin_path.with_name(f".{self.bin_path.name}.{tag}")
        self._tmp_idx = self.idx_path.with_name(f".{self.idx_path.name}.{tag}")
        self._file = self._tmp_bin.open("wb")

    def __enter__(self) -> PairWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            with contextlib.suppress(OSError):
                self._file.close()
            for path in (self._tmp_bin, self._tmp_idx):
                with contextlib.suppress(OSError):
                    path.unlink()

    def append(self, ids: np.ndarray) -> None:
        """Adds integer ``ids`` [n] to the sequence that is open."""
        ids = np.asarray(ids)
        if ids.size == 0:
            return
        if ids.dtype.kind not in "iu":
            raise DataError(f"{self.bin_path}: tokens are {ids.dtype}, expected integers")
        low, high, room = int(ids.min()), int(ids.max()), np.iinfo(self.dtype)
        if low < room.min or high > room.max:
            wrong = low if low < room.min else high
            raise DataError(f"{self.bin_path}: token id {wrong} does not fit {self.dtype}")
        self._open_tokens += ids.size
        if self._open_tokens > 2**31 - 1:
            raise DataError(
                f"{self.bin_path}: a sequence has {self._open_tokens} tokens, the format holds "
                "2147483647; split the document"
            )
        self._file.write(np.ascontiguousarray(ids, dtype=self.dtype).data)

    def end_sequence(self) -> None:
        """Closes the open sequence; one without tokens is kept, with length 0."""
        self._sizes.append(self._open_tokens)
        self._open_tokens = 0

    def end_document(self) -> None:
        """Closes the open document (the sequences since the last one)."""
        self._documents.append(len(self._sizes))

    def add_document(self, ids: np.ndarray) -> None:
        """Adds ``ids`` [n] as one document of one sequence."""
        self.append(ids)
        self.end_sequence()
        self.end_document()

    def _finish(self) -> None:
        if self._open_tokens:
            self.end_sequence()
        if self._documents[-1] != len(self._sizes):
            self.end_document()
        sizes = np.frombuffer(self._sizes, dtype=np.int32)
        if not sizes.sum(dtype=np.int64):
            raise DataError(f"{self.bin_path}: no tokens were written; expected some text")
        starts = np.zeros(len(sizes), dtype="<i8")
        np.cumsum(sizes[:-1], out=starts[1:], dtype=np.int64)
        starts *= self.dtype.itemsize
        documents = np.frombuffer(self._documents, dtype=np.int64)
        with self._tmp_idx.open("wb") as index:
            counts = (len(sizes), len(documents))
            index.write(HEADER.pack(MAGIC, VERSION, self._code, *counts))
            for part in (sizes.astype("<i4"), starts, documents.astype("<i8")):
                index.write(part.data)
            index.flush()
            os.fsync(index.fileno())
        self._file.flush()
        os.fsync(self._file.fileno())
        with contextlib.suppress(FileNotFoundError):
            self.idx_path.unlink()
        self._tmp_bin.replace(self.bin_path)
        self._tmp_idx.replace(self.idx_path)


class TokenPair:
    """A pair opened for reading by ``numpy.memmap``; nothing is read until it is used.

    Attributes: ``tokens`` [N] all tokens; ``sizes`` [n] in tokens; ``starts`` [n] in bytes;
    ``documents`` [d] the document index. Raises :class:`DataError`, one line, for a pair that is
    missing, empty, truncated, foreign or not made of one index and its own tokens.
    """

    def __init__(self, prefix: PathLike) -> None:
        self.bin_path, self.idx_path = pair_paths(prefix)
        for path in (self.idx_path, self.bin_path):
            if not is_file(path):
                raise DataError(f"{path}: no such file; a data set is a .bin and a .idx file")
            if path.stat().st_size == 0:
                raise DataError(f"{path}: the file is empty; write the data set again")
        try:
            self._open()
        except OSError as error:
            where = error.filename or self.idx_path
            raise DataError(f"{where}: cannot be read: {error.strerror}") from error

    def _refuse(self, what: str) -> DataError:
        return DataError(f"{self.idx_path}: {what}; write the data set again")

    def _open(self) -> None:
        length = self.idx_path.stat().st_size
        with self.idx_path.open("rb") as index:
            head = index.read(HEADER.size)
        if head.startswith(LEGACY_MAGIC):
            raise self._refuse("an index of Megatron's lazy or cached kind, expected its mmap kind")
        if not head.startswith(MAGIC[: len(head)]):
            raise self._refuse(f"not an mmap index: it starts with {head[:9]!r}, not {MAGIC!r}")
        if len(head) < HEADER.size:
            raise self._refuse(f"truncated: {length} bytes, the header alone has {HEADER.size}")
        _, version, code, n, d = HEADER.unpack(head)
        if version != VERSION:
            raise self._refuse(f"version {version}, expected {VERSION}")
        if code not in DTYPES:
            raise self._refuse(f"dtype code {code}, expected one of {sorted(DTYPES)} (integers)")
        whole = HEADER.size + 12 * n + 8 * d
        if length not in (whole, whole + n):
            what = "truncated" if length < whole else "too long"
            raise self._refuse(f"{what}: {length} bytes, {n} sequences need {whole}")
        if n == 0 or d == 0:
            raise self._refuse("no sequences in the index")
        self.dtype = DTYPES[code]
        offset = HEADER.size
        self.sizes = np.memmap(self.idx_path, "<i4", "r", offset, (n,))
        self.starts = np.memmap(self.idx_path, "<i8", "r", offset + 4 * n, (n,))
        self.documents = np.memmap(self.idx_path, "<i8", "r", offset + 12 * n, (d,))
        if length > whole and np.memmap(self.idx_path, "i1", "r", whole, (n,)).any():
            raise self._refuse("a multimodal index, expected text alone")
        self._check_index(n)
        self.tokens = np.memmap(self.bin_path, self.dtype, "r")

    def _check_index(self, n: int) -> None:
        if int(self.sizes.min()) < 0:
            raise self._refuse("a negative sequence length")
        ends = np.cumsum(self.sizes, dtype=np.int64) * self.dtype.itemsize
        if self.starts[0] != 0 or not np.array_equal(self.starts[1:], ends[:-1]):
            raise self._refuse("the sequence starts do not follow from the lengths")
        first, last = int(self.documents[0]), int(self.documents[-1])
        if first != 0 or last != n or bool((np.diff(self.documents) < 0).any()):
            raise self._refuse(f"the document index runs from {first} to {last}, not 0 to {n}")
        have, need = self.bin_path.stat().st_size, int(ends[-1])
        if need == 0:
            raise self._refuse("the index describes no tokens")
        if have != need:
            raise DataError(
                f"{self.bin_path}: {have} bytes, but the index describes {need}: truncated, or "
                "the index of another file; write the data set again"
            )

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> np.ndarray:
        """Sequence ``i`` [length], a view of the file."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        start = int(self.starts[i]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.sizes[i])]

    @property
    def num_documents(self) -> int:
        return len(self.documents) - 1

    def max_id(self, chunk: int = 1 << 24) -> int:
        """The largest token id, found by one pass in pieces of ``chunk`` tokens.

        Raises DataError for a negative id, which the signed types of a foreign pair can hold.
        """
        largest = 0
        for at in range(0, len(self.tokens), chunk):
            piece = self.tokens[at : at + chunk]
            if piece.min() < 0:
                first = at + int((piece < 0).argmax())
                raise DataError(
                    f"{self.bin_path}: token {first} is {self.tokens[first]}, expected ids of 0 "
                    "and above; write the data set again"
                )
            largest = max(largest, int(piece.max()))
        return largest
