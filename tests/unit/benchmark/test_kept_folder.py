"""A folder of checkpoints says what is in it, and what does not fit is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import dsmoe

from dsmoe.benchmark.cases.case import Parallel
from dsmoe.benchmark.cases.suites import SUITES
from dsmoe.common.errors import Busy, ResultsError, UsageError
from dsmoe.model.checkpoint_folder import (
    at_work,
    describe,
    read_kept,
    step_of,
    tag_of,
    tokenizer_to_go_on,
)
from dsmoe.model.kept_run import Plan, check_plan

CASE = SUITES["smoke"][0]
ZERO_0 = replace(CASE.parallel, zero_stage=0)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    tokenizer = tmp_path / "given.json"
    tokenizer.write_text('{"a": 1}')
    describe(tmp_path / "kept", CASE, "hash", str(tokenizer))
    (tmp_path / "kept" / tag_of(12)).mkdir()
    (tmp_path / "kept" / "latest").write_text(tag_of(12))
    return tmp_path / "kept"


def test_it_says_what_was_trained(kept: Path) -> None:
    found = read_kept(kept)
    assert (found.case, found.content, found.step) == (CASE, "hash", 12)
    assert found.tokenizer == kept / "tokenizer.json"
    assert found.tokenizer.read_text() == '{"a": 1}'


def test_a_checkpoint_that_is_not_whole_is_refused(kept: Path) -> None:
    manifest = kept / tag_of(12) / "manifest.sha256"
    manifest.write_text("# step12 saved\n00  states.pt\n# 00\n")
    with pytest.raises(ResultsError, match=r"step12/states\.pt: found no such file"):
        read_kept(kept)
    (kept / tag_of(12) / "states.pt").touch()
    assert read_kept(kept).step == 12
    (kept / tag_of(12)).rename(kept / "step12.former")
    assert read_kept(kept).step == 12
    (kept / "latest").write_text(tag_of(99))
    (kept / tag_of(6)).mkdir()
    with pytest.raises(ResultsError, match=r"found step99, and no such folder .*: step6$"):
        read_kept(kept)


def test_a_description_holds_for_the_checkpoints_that_come_after_it(kept: Path) -> None:
    """A resumed training may fail, or be killed, before it writes its first checkpoint."""
    halves = replace(CASE, precision="bf16")
    describe(kept, halves, "other text", None)
    found = read_kept(kept)
    assert (found.case, found.content, found.step) == (CASE, "hash", 12)
    describe(kept, replace(CASE, precision="fp16"), "third text", None)  # the first one failed
    assert read_kept(kept).case == CASE
    (kept / tag_of(15)).mkdir()
    (kept / "latest").write_text(tag_of(15))
    found = read_kept(kept)
    assert (found.case.precision, found.content) == ("fp16", "third text")
    describe(kept, halves, "other text", None)
    assert read_kept(kept).case.precision == "fp16"


def test_checkpoints_that_latest_does_not_name_are_not_overwritten(kept: Path) -> None:
    (kept / "latest").unlink()
    with pytest.raises(UsageError, match="found step12 and no file latest; write the name"):
        check_plan(Plan(kept, 1, None, None), CASE)


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ({"parallel": ZERO_0, "flat_gradients": False}, "of ZeRO stage 2, .* --zero-stage 2"),
        ({"adafactor_mode": "artifact"}, "of another case: adafactor_mode sharded"),
    ],
)
def test_what_the_states_depend_on_is_compared_before_the_start(
    kept: Path, here: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        check_plan(Plan(kept, 1, kept, None), replace(CASE, iterations=99, **here))


def test_states_of_one_form_are_not_refused(tmp_path: Path) -> None:
    """Without ZeRO those of both AdaFactor modes; in a pipeline those of its stages 0 and 1."""
    plain = replace(CASE, parallel=ZERO_0, flat_gradients=False)
    two = Parallel(2, 1, 1, pipeline_parallel_size=2)
    piped = replace(CASE, parallel=two, flat_gradients=True)
    here = [
        (plain, replace(plain, adafactor_mode="artifact")),
        (piped, replace(piped, parallel=replace(two, zero_stage=0), flat_gradients=False)),
    ]
    for number, (before, after) in enumerate(here):
        folder = tmp_path / str(number)
        describe(folder, before, "hash", None)
        (folder / tag_of(3)).mkdir()
        (folder / "latest").write_text(tag_of(3))
        assert check_plan(Plan(folder, 1, folder, None), replace(after, iterations=99)) == 3


def test_one_training_at_a_time_is_in_a_folder(kept: Path) -> None:
    again = at_work(kept)
    with at_work(kept), pytest.raises(Busy, match="another dsmoe train is at work there"):
        again.__enter__()
    with at_work(kept):
        pass


def test_what_was_not_finished_is_removed_before_and_after_a_training(kept: Path) -> None:
    """Of a save that failed, of whatever tag; a full disk stayed full by it."""
    whole, foreign = kept / tag_of(6), kept / "step6.saving-mine"
    for place in (whole, foreign, kept / "step9.saving-0123abcd"):
        place.mkdir()
        (place / "file").write_text("x")
    with at_work(kept):
        assert not (kept / "step9.saving-0123abcd").exists()
        (kept / "step12.saving-89abcdef").mkdir()
    left = {path.name for path in kept.iterdir() if path.is_dir()}
    assert {whole.name, foreign.name} <= left and "step12.saving-89abcdef" not in left


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
    (tmp_path / "bytes" / tag_of(1)).mkdir()
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
