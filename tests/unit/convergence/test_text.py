"""The comparison's text: whole packages are held out, and nothing of them is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.comparison import words

from dsmoe.benchmark.data.corpus import prepare
from dsmoe.common.errors import DataError
from dsmoe.convergence import text


def folder_of_packages(root: Path) -> Path:
    for package in ("alpha", "beta", "gamma", "delta"):
        for module in ("one", "two", "three", "four", "five", "six"):
            file = root / package / f"{module}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(words(f"{package}.{module}"))
    (root / "beta-1.0.dist-info").mkdir()
    (root / "beta-1.0.dist-info" / "top_level.txt").write_text("beta\n")
    (root / "alpha" / "vendored.py").write_text(words("alpha.one") + "\n\n")
    (root / "alpha" / "table.so").write_bytes(b"\xff" * 100)
    (root / "alpha" / "latin.py").write_bytes("café\n".encode("latin-1") * 100)
    return root


def test_held_out_text_is_whole_packages_without_copies(tmp_path: Path) -> None:
    root = folder_of_packages(tmp_path / "site")
    made = text.prepare(tmp_path / "cache", [str(root)], 10**9)
    info = made.info
    assert (info.documents, info.copies, info.leaks, info.held_out_entries) == (25, 1, 0, 1)
    assert info.shared_lines == 0
    corpus = prepare(tmp_path / "cache", **made.options())
    assert corpus.held_out is not None
    train, held = (bytes(ids[ids < 256].astype("uint8")) for ids in (corpus.train, corpus.held_out))
    assert (len(corpus.train), len(corpus.held_out)) == (info.train_tokens, info.held_out_tokens)
    package = held.split(b".")[0].split()[-1]
    assert held.count(package + b".") == 6 * 40 and package + b"." not in train
    assert text.entry_of("beta-1.0.dist-info/top_level.txt") == text.entry_of("beta/one.py")


@pytest.mark.parametrize("folder", [False, True])
def test_lines_of_json_are_documents_by_their_field(folder: bool, tmp_path: Path) -> None:
    """The text alone is taken, as dsmoe train does: no braces, no other fields, no broken lines."""
    lines = [json.dumps({"body": f"line {n} of the text", "id": n}) for n in range(40)]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "some.jsonl"
    path.write_text("\n".join([*lines, lines[0], "{broken", '{"id": 1}']), encoding="utf-8")
    place = str(path.parent if folder else path)
    made = text.prepare(tmp_path / "cache", [place], 10**9, "body")
    assert (made.info.documents, made.info.copies) == (40, 1)
    assert 1 <= made.info.held_out_documents <= 2
    corpus = prepare(tmp_path / "cache", **made.options())
    held = corpus.held_out
    assert held is not None
    whole = [*corpus.train.tolist(), *held.tolist()]
    documents = bytes(n if n < 256 else 0 for n in whole).decode().split("\0")[:-1]
    assert sorted(documents) == sorted(f"line {n} of the text" for n in range(40))
    with pytest.raises(DataError, match="--text-field"):
        text.prepare(tmp_path / "cache", [place], 10**9)


def test_a_field_without_lines_of_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("no lines of JSON\n" * 50)
    for build in (
        lambda: text.prepare(tmp_path / "cache", [str(tmp_path)], 10**9, "body"),
        lambda: prepare(tmp_path / "cache", [str(tmp_path)], field="body"),
        lambda: prepare(tmp_path / "cache", field="body"),
    ):
        with pytest.raises(DataError, match=r"--text-field body: found no \.jsonl"):
            build()


def test_a_held_out_document_that_repeats_the_training_text_is_left_out(tmp_path: Path) -> None:
    def document(name: str, content: str) -> text.Document:
        path = tmp_path / f"{name}.py"
        path.write_text(content)
        return text.Document(text.Source(name, path, len(content), 0), name)

    train = [document("a", words("a"))]
    kept = [document("copy", words("a", 20) + "end\n"), document("own", words("own", 20))]
    assert text.seen_shares(train, kept) == [(20, 20), (20, 0)]
