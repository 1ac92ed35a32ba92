"""Lines of JSON are documents; a file of any size goes through little memory, in order."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import ROOT

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.data.corpus import prepare
from dsmoe.benchmark.run.one_case import prepare_text
from dsmoe.benchmark.run.request import Text
from dsmoe.common.errors import DataError

END = 256
LINES = [
    json.dumps({"text": "one\ntwo"}),
    "",
    "{no JSON",
    json.dumps({"content": "no text"}),
    json.dumps(["text"]),
    json.dumps({"text": 3}),
    json.dumps({"text": ""}),
    json.dumps({"text": "café ✓", "meta": {"a": 1}}),
    '{"text": "half \\ud800"}',
]
GOOD = [b"one\ntwo", "café ✓".encode(), b"half ?"]
LEFT_OUT = {
    "empty line": 1,
    "line without JSON": 1,
    "line with an empty 'text'": 1,
    "line without a text 'text'": 3,
}


def documents(*parts) -> list[bytes]:
    """The documents of byte tokens, in order."""
    ids = [int(i) for part in parts if part is not None for i in part]
    text = "".join(map(chr, ids)).split(chr(END))
    assert text.pop() == ""
    return [document.encode("latin-1") for document in text]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL.gz"])
def test_every_line_is_a_document_and_the_rest_is_counted(tmp_path: Path, name: str) -> None:
    data = "\n".join(LINES).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    whole = prepare(tmp_path / "cache", [str(tmp_path / name)], held_out=0)
    assert documents(whole.train) == GOOD and whole.held_out is None
    assert (whole.info.documents, whole.info.left_out) == (3, LEFT_OUT)
    parts = prepare(tmp_path / "cache", [str(tmp_path / name)])  # the second one at least is kept
    assert documents(parts.train) == [GOOD[0], GOOD[2]] and documents(parts.held_out) == [GOOD[1]]
    other = prepare(tmp_path / "cache", [str(tmp_path / name)], field="content", held_out=0)
    assert documents(other.train) == [b"no text"]
    with pytest.raises(DataError, match=r"0 documents; left out: .*--text-field"):
        prepare(tmp_path / "cache", [str(tmp_path / name)], field="body")


def test_a_share_of_many_lines_is_held_out_and_files_beside_them_too(tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text("".join(f'{{"text":"{n}"}}\n' for n in range(4000)))
    for n in range(20):
        (tmp_path / f"{n}.txt").write_text(f"file {n}")
    corpus = prepare(tmp_path / "cache", [str(tmp_path)])
    train, kept = documents(corpus.train), documents(corpus.held_out)
    assert corpus.info.held_out_documents == len(kept)
    assert sum(d.startswith(b"file") for d in kept) == 1  # as without the lines
    assert 150 < len(kept) - 1 < 250  # 5 % of 4000 by a hash: 200, deviation 14
    texts = [f"file {n}".encode() for n in range(20)] + [str(n).encode() for n in range(4000)]
    assert sorted(train + kept) == sorted(texts)
    numbers = [int(d) for d in train if d.isdigit()]
    assert numbers == sorted(numbers)


def test_the_cap_counts_the_text_of_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("12345")
    (tmp_path / "b.jsonl").write_text('{"text": "678"}\n{"text": "9012"}\n{"text": "x"}\n')
    corpus = prepare(tmp_path / "cache", [str(tmp_path)], held_out=0, cap=8)
    assert documents(corpus.train) == [b"12345", b"678"]


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    packed = gzip.compress(os.urandom(300_000).hex().encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "no.jsonl.gz").write_bytes(b"no gzip")
    for name in ("cut", "no"):
        with pytest.raises(DataError, match=f"{name}.jsonl.gz: damaged gzip file"):
            prepare(tmp_path / "cache", [str(tmp_path / f"{name}.jsonl.gz")])


def test_vocabulary_and_length_are_checked_before_a_process_starts(tmp_path: Path, capsys) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "short"}\n{"no": 1}\n')
    text = Text.of([str(tmp_path / "t.jsonl")], None)
    request = SimpleNamespace(text=text, cache=tmp_path / "cache", surveyed=None)
    case = find_case("smoke", 1)
    narrow = replace(case, model=replace(case.model, vocab_size=200))
    with pytest.raises(DataError, match="outside of the model's vocabulary of 200"):
        prepare_text(request, narrow)
    assert not (tmp_path / "cache").exists()  # nothing was encoded
    with pytest.raises(DataError, match="the text has 6 tokens, but one global batch") as caught:
        prepare_text(request, case)
    assert caught.value.exit_code == 9
    assert "1 document; left out: 1 line without a text 'text'" in capsys.readouterr().out


MEASURE = """
import pathlib, resource, sys
from dsmoe.benchmark.data.corpus import prepare
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = prepare(pathlib.Path(sys.argv[1]), [sys.argv[2]])
print(made.info.documents, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.long
def test_a_large_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    """256 MB of text, in 1,000 documents and one line over the limit, from 0.3 MB of gzip."""
    with gzip.open(tmp_path / "big.jsonl.gz", "wt", compresslevel=1) as file:
        for _ in range(1000):
            file.write('{"text": "' + "abcdefgh" * 23_000 + '"}\n')
        file.write('{"text": "' + "x" * (72 << 20) + '"}\n')
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "c"), str(tmp_path / "big.jsonl.gz")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    count, kilobytes = map(int, done.stdout.split())
    # one line of at most 64 MiB, as bytes twice while it is skipped
    assert count == 1000 and kilobytes < 170_000


ORDER = """
import json, pathlib, sys
from dsmoe.benchmark.data.corpus import prepare
made = prepare(pathlib.Path(sys.argv[1]), [sys.argv[2]], sys.argv[3])
print(json.dumps([made.info.content, made.train.tolist(), made.held_out.tolist()]))
"""


def test_all_cores_give_what_one_core_gives(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["</s>"], show_progress=False
    )
    source = Path(os.__file__).read_text()
    made.train_from_iterator([source], trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    lines = [json.dumps({"text": source[at : at + at % 97]}) for at in range(0, len(source), 50)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    answers = []
    for threads in ("1", "4"):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "RAYON_NUM_THREADS": threads}
        env["TOKENIZERS_PARALLELISM"] = "false" if threads == "1" else "true"
        paths = [tmp_path / f"c{threads}", tmp_path / "t.jsonl", tmp_path / "tokenizer.json"]
        command = [sys.executable, "-c", ORDER, *map(str, paths)]
        answers.append(subprocess.check_output(command, env=env, text=True))
    assert answers[0] == answers[1]
    content, train, held = json.loads(answers[0])
    expected = [
        i
        for line in lines
        if json.loads(line)["text"]
        for i in [*made.encode(json.loads(line)["text"]).ids, made.token_to_id("</s>")]
    ]
    assert len(content) == 64 and len(train) + len(held) == len(expected)
    assert sorted(train + held) == sorted(expected)
