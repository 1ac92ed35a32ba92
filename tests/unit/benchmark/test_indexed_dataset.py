"""Token pairs, against bytes packed by hand; every broken pair is refused in one line."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from dsmoe.benchmark.data.indexed_dataset import DTYPES, PairWriter, TokenPair
from dsmoe.common.errors import DataError


def index_bytes(sizes, starts, documents, magic=b"MMIDIDX\0\0", version=1, code=8, count=None):
    """The .idx file as the format's description reads, packed value by value."""
    data = magic + struct.pack("<Q", version) + struct.pack("<B", code)
    data += struct.pack("<QQ", len(sizes) if count is None else count, len(documents))
    for form, values in (("<i", sizes), ("<q", starts), ("<q", documents)):
        data += b"".join(struct.pack(form, value) for value in values)
    return data


# Two documents: sequences [1, 2, 3] and [], then [65535].
HAND_BIN = struct.pack("<4H", 1, 2, 3, 65535)
HAND_IDX = index_bytes([3, 0, 1], [0, 6, 6], [0, 2, 3])


def put(folder: Path, idx: bytes = HAND_IDX, tokens: bytes = HAND_BIN) -> Path:
    (folder / "p.idx").write_bytes(idx)
    (folder / "p.bin").write_bytes(tokens)
    return folder / "p"


def test_reads_and_writes_the_bytes_packed_by_hand(tmp_path: Path) -> None:
    for name in ("p", "p.bin", "p.idx"):
        put(tmp_path)
        pair = TokenPair(tmp_path / name)
        assert [list(pair[i]) for i in range(len(pair))] == [[1, 2, 3], [], [65535]]
        assert (list(pair.documents), pair.num_documents) == ([0, 2, 3], 2)
        assert (pair.max_id(chunk=2), list(pair.tokens)) == (65535, [1, 2, 3, 65535])
    with PairWriter(tmp_path / "w.1", np.uint16) as writer:  # a dot in the name is no suffix
        writer.append(np.array([1]))
        writer.append(np.array([2, 3], dtype=">i4"))
        writer.end_sequence()
        writer.end_sequence()
        writer.end_document()
        writer.add_document(np.array([65535]))
    assert (tmp_path / "w.1.idx").read_bytes() == HAND_IDX
    assert (tmp_path / "w.1.bin").read_bytes() == HAND_BIN


def test_a_negative_id_is_refused(tmp_path: Path) -> None:
    index = index_bytes([3, 0, 1], [0, 6, 6], [0, 2, 3], code=3)
    pair = TokenPair(put(tmp_path, index, struct.pack("<4h", 1, 2, -3, 7)))
    with pytest.raises(DataError, match=r"p\.bin: token 2 is -3, expected ids of 0 and above"):
        pair.max_id(chunk=2)


def test_reads_text_with_the_modes_of_newer_files(tmp_path: Path) -> None:
    assert len(TokenPair(put(tmp_path, HAND_IDX + b"\0\0\0"))) == 3
    with pytest.raises(DataError, match="multimodal"):
        TokenPair(put(tmp_path, HAND_IDX + b"\0\1\0"))


@st.composite
def corpora(draw):
    dtype = draw(st.sampled_from(sorted(DTYPES.values(), key=str)))
    limits = np.iinfo(dtype)
    sequence = st.lists(st.integers(int(limits.min), int(limits.max)), max_size=6)
    documents = draw(st.lists(st.lists(sequence, max_size=3), min_size=1, max_size=5))
    if not any(sequence for document in documents for sequence in document):
        documents.append([[int(limits.max)]])
    return dtype, documents


@settings(max_examples=60, deadline=None)
@given(corpora())
def test_round_trip(corpus) -> None:
    dtype, documents = corpus
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "p"
        with PairWriter(prefix, dtype) as writer:
            for document in documents:
                for sequence in document:
                    writer.append(np.array(sequence[:2], dtype=dtype))
                    writer.append(np.array(sequence[2:], dtype=dtype))
                    writer.end_sequence()
                writer.end_document()
        assert {path.name for path in Path(folder).iterdir()} == {"p.bin", "p.idx"}
        pair = TokenPair(prefix)
        cuts = list(pair.documents)
        sequences = [list(pair[i]) for i in range(len(pair))]
        assert [sequences[a:b] for a, b in zip(cuts, cuts[1:])] == documents
        assert pair.dtype == dtype


def refusal(prefix: Path) -> str:
    with pytest.raises(DataError) as caught:
        TokenPair(prefix)
    message = str(caught.value)
    assert "\n" not in message and str(prefix.parent) in message
    return message


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for length in range(len(HAND_IDX)):
        refusal(put(tmp_path, HAND_IDX[:length]))
    for length in range(len(HAND_BIN)):
        refusal(put(tmp_path, tokens=HAND_BIN[:length]))
    assert "index of another file" in refusal(put(tmp_path, tokens=HAND_BIN + b"\0\0"))


@pytest.mark.parametrize(
    ("idx", "expected"),
    [
        (b"TNTIDX\0\0" + HAND_IDX[8:], "lazy or cached"),
        (b"PK\3\4" + HAND_IDX[4:], "not an mmap index"),
        (HAND_IDX + b"x", "too long"),
        (index_bytes([3, 0, 1], [0, 6, 6], [0, 2, 3], version=2), "version 2"),
        (index_bytes([3, 0, 1], [0, 6, 6], [0, 2, 3], code=6), "dtype code 6"),
        (index_bytes([3, 0, 1], [0, 6, 6], [0, 2, 3], code=0), "dtype code 0"),
        (index_bytes([3, 0, 1], [0, 6, 6], [0, 2, 3], code=1), "starts do not follow"),
        (index_bytes([3, 0, 1], [0, 6, 6], [0, 2, 3], count=2**63), "truncated"),
        (index_bytes([3, -1, 2], [0, 6, 4], [0, 2, 3]), "negative"),
        (index_bytes([3, 0, 1], [2, 6, 6], [0, 2, 3]), "starts do not follow"),
        (index_bytes([3, 0, 1], [0, 6, 6], [0, 2, 2]), "0 to 2, not 0 to 3"),
        (index_bytes([3, 0, 1], [0, 6, 6], [0, 3, 2, 3]), "document index"),
        (index_bytes([], [], [0]), "no sequences"),
        (index_bytes([0], [0], [0, 1]), "no tokens"),
        (index_bytes([3, 0, 2], [0, 6, 6], [0, 2, 3]), "index of another file"),
    ],
)
def test_foreign_and_mismatched_pairs_are_refused(tmp_path: Path, idx: bytes, expected) -> None:
    assert expected in refusal(put(tmp_path, idx))


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    for name in ("p.idx", "p.bin"):
        prefix = put(tmp_path)
        (tmp_path / name).write_bytes(b"")
        assert f"{name}: the file is empty" in refusal(prefix)
        (tmp_path / name).unlink()
        assert f"{name}: no such file" in refusal(prefix)


def test_writer_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    wrong = [
        (np.array([70000]), "70000 does not fit uint16"),
        (np.array([-1]), "-1 does not fit uint16"),
        (np.array([1.0]), "expected integers"),
        (np.array([], dtype=int), "no tokens"),
    ]
    for ids, expected in wrong:
        with pytest.raises(DataError, match=expected), PairWriter(tmp_path / "p") as writer:
            writer.add_document(ids)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="float32 is not one of"):
        PairWriter(tmp_path / "p", np.float32)
    with pytest.raises(FileNotFoundError):
        PairWriter(tmp_path / "none" / "p")


# SPOT 0: while tokens are written; 1 and 2: at the first and second of the two renames.
KILLED = """
import os, pathlib, signal, sys
import numpy as np
from dsmoe.benchmark.data.indexed_dataset import PairWriter
spot, left = int(sys.argv[2]), int(sys.argv[2])
def die(): os.kill(os.getpid(), signal.SIGKILL)
real = pathlib.Path.replace
def replace(self, target):
    global left
    left -= 1
    if left == 0: die()
    return real(self, target)
pathlib.Path.replace = replace
with PairWriter(sys.argv[1]) as writer:
    writer.add_document(np.arange(5000))
    if spot == 0: die()
"""


@pytest.mark.parametrize("spot", [0, 1, 2])
@pytest.mark.parametrize("older", [False, True])
def test_a_kill_leaves_no_pair_or_a_whole_one(tmp_path: Path, spot: int, older: bool) -> None:
    prefix = put(tmp_path) if older else tmp_path / "p"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(prefix), str(spot)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    if older and spot == 0:
        assert list(TokenPair(prefix).tokens) == [1, 2, 3, 65535]
    else:
        assert "p.idx: no such file" in refusal(prefix)


def test_writing_streams(tmp_path: Path) -> None:
    piece = np.arange(32768, dtype=np.uint16)
    tracemalloc.start()
    with PairWriter(tmp_path / "p") as writer:
        for _ in range(200):
            writer.append(piece)
        writer.end_sequence()
        writer.end_document()
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "p.bin").stat().st_size == 200 * piece.nbytes  # 13 MB
    assert peak < 1_000_000
    shutil.rmtree(tmp_path)
