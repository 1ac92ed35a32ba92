"""Text is kept byte for byte, split by document, cached safely; bad input is one line."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from dsmoe.benchmark.data.corpus import Corpus, prepare, split
from dsmoe.benchmark.data.indexed_dataset import PairWriter, TokenPair
from dsmoe.benchmark.data.sources import find_sources, read_pieces
from dsmoe.benchmark.data.tokenizer import JsonTokenizer
from dsmoe.common.errors import DataError, DsmoeError, EnvironmentProblem

END = 256
TEXTS = {
    "a.txt": b"plain\n",
    "b/crlf.txt": b"one\r\ntwo\r\n",
    "b/latin.txt": b"caf\xe9 \xff\xfe\x01 raw",
    "c.md": "d\u00e9j\u00e0 vu \u2713\n".encode() * 50,
    "d.txt": bytes(range(1, 256)),
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    for name, data in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "empty.txt").touch()
    (folder / ".hidden").write_bytes(b"no")
    return folder


def documents(tokens) -> list[bytes]:
    """The documents of byte tokens, cut at the end-of-document ids."""
    ids = [] if tokens is None else tokens.tolist()
    assert not ids or ids[-1] == END
    found, document = [], []
    for token in ids:
        if token == END:
            found.append(bytes(document))
            document = []
        else:
            document.append(token)
    return found


def held(corpus: Corpus) -> list[bytes]:
    return documents(corpus.train) + documents(corpus.held_out)


def test_bytes_are_kept_raw_and_every_document_is_in_one_part(texts: Path, tmp_path: Path) -> None:
    corpus = prepare(tmp_path / "cache", [str(texts)], held_out=0.4)
    assert sorted(held(corpus)) == sorted(TEXTS.values())
    assert len(documents(corpus.held_out)) == corpus.info.held_out_documents == 2
    assert (corpus.info.train_tokens, corpus.info.largest_id) == (corpus.train.size, END)
    assert prepare(tmp_path / "cache", [str(texts)], held_out=0).held_out is None
    one = prepare(tmp_path / "cache", [str(texts / "a.txt")], held_out=0.5)
    assert (documents(one.train), one.held_out) == ([TEXTS["a.txt"]], None)
    some = prepare(tmp_path / "cache", [str(texts / "*.txt"), str(texts / "a.txt")], held_out=0)
    assert documents(some.train) == [TEXTS["a.txt"], TEXTS["d.txt"]]


def test_the_default_text_is_the_standard_library(tmp_path: Path) -> None:
    corpus = prepare(tmp_path / "cache")
    assert Path(argparse.__file__).read_bytes() in held(corpus)
    assert 1_000_000 < corpus.train.size + corpus.held_out.size <= 8_100_000
    again = prepare(tmp_path / "cache")
    assert again.info == corpus.info and inode(again) == inode(corpus)
    small = find_sources(cap=50_000)
    assert small == sorted(small) and 0 < sum(source.size for source in small) <= 50_000


def test_the_split_depends_on_names_alone(texts: Path) -> None:
    sources = find_sources([str(texts)])
    train, kept = split(sources, 0.4)
    assert sorted(train + kept) == sources and len(kept) == 2
    assert {s.name for s in split(sources[::-1], 0.4)[1]} == {s.name for s in kept}
    assert len(split(sources, 0.001)[1]) == 1 and len(split(sources, 0.99)[0]) == 1


def inode(corpus: Corpus) -> int:
    return Path(corpus.train.filename).stat().st_ino


def test_a_cache_is_kept_until_something_changes(texts: Path, tmp_path: Path) -> None:
    def run(**changes) -> Corpus:
        return prepare(tmp_path / "cache", [str(texts)], **changes)

    first = run()
    assert inode(run()) == inode(first)
    state = (texts / "a.txt").stat()
    (texts / "a.txt").write_bytes(b"PLAIN\n")  # the same length
    os.utime(texts / "a.txt", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    changed = run()
    assert b"PLAIN\n" in held(changed) and b"plain\n" in held(first)
    assert changed.info.content != first.info.content
    (texts / "new.txt").write_bytes(b"new")
    assert b"new" in held(run())
    assert run(held_out=0.5).info.held_out_documents == 3
    for name in ("train.bin", "train.idx", "corpus.json", "held_out.idx"):
        folder = Path(run().train.filename).parent
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
        assert len(held(run())) == 6
    with PairWriter(Path(run().train.filename).parent / "train") as writer:  # whole, but another
        writer.add_document(np.array([END]))
    assert len(held(run())) == 6


def test_what_is_known_is_opened_without_a_look_at_the_text(texts: Path, tmp_path: Path) -> None:
    cache, paths = tmp_path / "cache", [str(texts)]
    first = prepare(cache, paths)
    (texts / "a.txt").write_bytes(b"changed")  # after the command has said what it trains on
    known = prepare(cache, paths, known=first.info)
    assert inode(known) == inode(first) and known.info == first.info
    # Another host, whose cache is its own, and a cache of another text: the text is read.
    elsewhere = prepare(tmp_path / "other", paths, known=first.info)
    assert b"changed" in held(elsewhere)
    assert b"changed" in held(prepare(cache, paths))
    assert b"changed" in held(prepare(cache, paths, known=first.info))


def test_the_tokens_of_a_known_pair_are_not_read(tmp_path: Path, monkeypatch) -> None:
    with PairWriter(tmp_path / "web", np.int32) as writer:
        writer.add_document(np.array([1, 7]))
    first = prepare(tmp_path, [str(tmp_path / "web")]).info
    with PairWriter(tmp_path / "other", np.int32) as writer:
        writer.add_document(np.array([9, 1, 3]))
    monkeypatch.setattr(TokenPair, "max_id", lambda pair: 1000)
    assert prepare(tmp_path, [str(tmp_path / "web")], known=first).info == first
    assert prepare(tmp_path, [str(tmp_path / "other")], known=first).info.largest_id == 1000


def test_content_is_the_same_wherever_the_text_lies(texts: Path, tmp_path: Path) -> None:
    first = prepare(tmp_path / "cache", [str(texts)])
    texts.rename(tmp_path / "moved")
    second = prepare(tmp_path / "cache", [str(tmp_path / "moved")])
    assert first.info.content == second.info.content
    assert first.info.fingerprint != second.info.fingerprint


PREPARE = """
import sys, json, pathlib, os, signal
from dsmoe.benchmark.data import corpus
if sys.argv[3] == "kill":
    corpus.write_output = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
made = corpus.prepare(pathlib.Path(sys.argv[1]), [sys.argv[2]])
print(json.dumps([made.info.content, pathlib.Path(made.train.filename).stat().st_ino]))
"""


def start(cache: Path, texts: Path, how: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PREPARE, str(cache), str(texts), how]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=env)


def test_processes_that_start_at_once_share_one_build(texts: Path, tmp_path: Path) -> None:
    (texts / "long.txt").write_bytes(b"long line of text\n" * 200_000)
    running = [start(tmp_path / "cache", texts, "") for _ in range(4)]
    answers = {tuple(json.loads(process.communicate()[0])) for process in running}
    assert len(answers) == 1


def test_a_killed_build_leaves_nothing_that_is_used(texts: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    killed = start(cache, texts, "kill")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in cache.iterdir() if path.is_dir()] != []
    assert sorted(held(prepare(cache, [str(texts)]))) == sorted(TEXTS.values())
    assert [path.name[0] for path in cache.iterdir() if path.is_dir()] != ["."]
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab\n\u00e9\u2713\U0001f600", max_size=60), st.integers(8, 20))
def test_pieces_join_to_the_file_and_split_no_character(text: str, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        path.write_bytes(text.encode())
        pieces = list(read_pieces(path, size))
    assert b"".join(pieces) == text.encode()
    assert all(0 < len(piece) <= size and piece.decode() for piece in pieces)


def test_pieces_of_raw_bytes_join_to_the_file(tmp_path: Path) -> None:
    for data in (b"\xff" * 1000, b"\x80" * 1000, b"\n" * 17, bytes(range(256)) * 3):
        (tmp_path / "t").write_bytes(data)
        assert b"".join(read_pieces(tmp_path / "t", 16)) == data


@pytest.fixture(scope="module")
def json_tokenizer(tmp_path_factory) -> Path:
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(["some text, some more text\n"] * 9, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def test_a_json_tokenizer_gives_the_library_s_own_ids(json_tokenizer: Path, tmp_path: Path) -> None:
    import tokenizers

    text = "some text\nmore \u2713 text\n" * 3
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    corpus = prepare(tmp_path / "cache", [str(tmp_path / "t.txt")], str(json_tokenizer))
    library = tokenizers.Tokenizer.from_file(str(json_tokenizer))
    end = library.token_to_id("<|endoftext|>")
    assert corpus.train.tolist() == [*library.encode(text).ids, end]
    assert JsonTokenizer(json_tokenizer).decode(corpus.train) == text.encode()
    assert corpus.info.end_of_document == end
    corpus.check_vocabulary(300)
    with pytest.raises(DataError, match="outside of the model's vocabulary of 100"):
        corpus.check_vocabulary(100)


def one_line(call, *expected: str, kind: type[DsmoeError] = DataError) -> None:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


def test_bad_tokenizers_are_refused(json_tokenizer: Path, tmp_path: Path, monkeypatch) -> None:
    bad = tmp_path / "bad.json"
    one_line(lambda: JsonTokenizer(bad), "bad.json: no such tokenizer file")
    for data in (b"", b"{}", b"\xff\xfe", b'{"model": 3}'):
        bad.write_bytes(data)
        one_line(lambda: JsonTokenizer(bad), "bad.json: not a tokenizers JSON file")
    one_line(lambda: JsonTokenizer(json_tokenizer, "<stop>"), "has none of <stop>")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    one_line(lambda: JsonTokenizer(json_tokenizer), "pip install tokenizers")


def test_bad_text_and_caches_are_refused(texts: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (tmp_path / "void").mkdir()
    cases = {
        "none.txt": "none.txt: no such file or folder",
        str(tmp_path / "*.none"): "nothing that can be seen matches",
        str(texts / "empty.txt"): "empty.txt: empty file",
        str(tmp_path / "void"): "no text found",
        os.devnull: "special file",
    }
    for path, expected in cases.items():
        one_line(lambda path=path: prepare(cache, [path]), expected)
    one_line(lambda: prepare(cache, [str(texts)], held_out=1.0), "held-out share 1.0")
    one_line(lambda: prepare(cache, [str(texts)], cap=3), "no text found within 3 bytes")
    words = "the cache cannot be written"
    one_line(lambda: prepare(texts / "a.txt", [str(texts)]), words, kind=EnvironmentProblem)


def test_a_full_disk_under_the_cache_is_no_fault_of_the_text(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    words = ("the cache cannot be written: No space left on device", "another path")
    one_line(lambda: prepare(tmp_path / "c", [str(texts)]), *words, kind=EnvironmentProblem)
    assert not list((tmp_path / "c").glob(".*"))


def test_an_existing_pair_is_used_in_place(tmp_path: Path) -> None:
    with PairWriter(tmp_path / "web", np.int32) as writer:
        for document in ([1, 2, 3], [4, 50256], [6]):
            writer.add_document(np.array(document))
    for name in ("web", "web.bin", "web.idx"):
        corpus = prepare(tmp_path / "cache", [str(tmp_path / name)], held_out=0.3)
        assert (corpus.train.tolist(), corpus.held_out.tolist()) == ([1, 2, 3, 4, 50256], [6])
        assert not (tmp_path / "cache").exists()
    # The artifact's own data: GPT-2 ids for a model of 32,000.
    one_line(lambda: corpus.check_vocabulary(32000), "50256", "32000")
    whole = prepare(tmp_path / "cache", [str(tmp_path / "web")], held_out=0)
    assert whole.train.size == TokenPair(tmp_path / "web").tokens.size and whole.held_out is None
