"""A folder of checkpoints says what is in it, and what does not fit is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import dsmoe

from dsmoe.benchmark.cases.suites import SUITES
from dsmoe.common.errors import ResultsError, UsageError
from dsmoe.model.folder import describe, read_kept, step_of, tag_of, tokenizer_to_go_on

CASE = SUITES["smoke"][0]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    tokenizer = tmp_path / "given.json"
    tokenizer.write_text('{"a": 1}')
    describe(tmp_path / "kept", CASE, "hash", str(tokenizer))
    (tmp_path / "kept" / "latest").write_text(tag_of(12))
    return tmp_path / "kept"


def test_it_says_what_was_trained(kept: Path) -> None:
    found = read_kept(kept)
    assert (found.case, found.content, found.step) == (CASE, "hash", 12)
    assert found.tokenizer == kept / "tokenizer.json"
    assert found.tokenizer.read_text() == '{"a": 1}'


def test_other_folders_are_refused(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found no dsmoe\.json"):
        read_kept(tmp_path)
    (kept / "latest").unlink()
    assert step_of(kept) is None
    with pytest.raises(UsageError, match="no finished checkpoint"):
        read_kept(kept)
    (kept / "dsmoe.json").write_text("{")
    with pytest.raises(ResultsError, match="cannot be read"):
        read_kept(kept)


def test_a_training_goes_on_with_its_tokenizer(kept: Path, tmp_path: Path) -> None:
    assert tokenizer_to_go_on(kept, None) == str(kept / "tokenizer.json")
    given = str(tmp_path / "given.json")
    assert tokenizer_to_go_on(kept, given) == given
    Path(given).write_text("{}")
    with pytest.raises(UsageError, match="another tokenizer"):
        tokenizer_to_go_on(kept, given)
    describe(tmp_path / "bytes", CASE, "hash", None)
    (tmp_path / "bytes" / "latest").write_text(tag_of(1))
    assert tokenizer_to_go_on(tmp_path / "bytes", None) is None
    with pytest.raises(UsageError, match="another tokenizer"):
        tokenizer_to_go_on(tmp_path / "bytes", given)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("1",), "expected --save DIR"),
        (("1", "--save", "x", "--all"), "--all"),
        (("1", "--save", "x", "--warmup", "1"), "--warmup"),
    ],
)
def test_mistakes_are_one_line(
    words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dsmoe("train", *words) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1
