"""What a checkpoint cannot give is one line: what was found, what was expected, what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.ranks import run_ranks

MODEL = {"num_experts": 4}
SCHEDULER = {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}}}


def _saved(folder: Path, processes: int = 1, **scenario: Any) -> Path:
    options = scenario.pop("options", {"tag": "one"})
    run_ranks(processes, "save_once", {"model": MODEL, **scenario}, str(folder), options)
    return folder


def _said(folder: Path, options: Any = None, processes: int = 1, **scenario: Any) -> str:
    """What all processes say, which is one line."""
    asked = {"model": MODEL, **scenario}
    results = run_ranks(processes, "load_result", asked, str(folder), options or {})
    first = results[0][0]
    assert all(result[0] == first for result in results) and "\n" not in first, results
    return first


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two processes with ZeRO-2."""
    return _saved(tmp_path_factory.mktemp("two"), 2, stage=2, expert_parallel=2)


def test_a_wrong_tag_names_those_there_are(saved: Path) -> None:
    said = _said(saved, {"tag": "on"}, stage=2)
    assert "has no checkpoint 'on', expected one of one" in said


def test_no_latest_is_refused_where_there_are_checkpoints(tmp_path: Path) -> None:
    assert _said(tmp_path / "nothing") == "loaded False False"
    _saved(tmp_path / "a", options={"tag": "five", "save_latest": False})
    said = _said(tmp_path / "a")
    assert said.startswith("RuntimeError") and "has no file latest and holds the tags five" in said
    (tmp_path / "a" / "latest").write_text("six")
    assert "has no checkpoint 'six', expected one of five" in _said(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zero_pp_rank_1_mp_rank_00_optim_states.pt", "found the files of 1 processes, expected 2"),
        ("expert_3_mp_rank_00_model_states.pt", "found the files of 3 experts, expected 4"),
        ("mp_rank_00_model_states.pt", "has no mp_rank_00_model_states.pt"),
    ],
)
def test_a_missing_file_is_named(saved: Path, tmp_path: Path, name: str, words: str) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "one" / "manifest.sha256").unlink()
    (tmp_path / "copy" / "one" / name).unlink()
    said = _said(tmp_path / "copy", processes=2, stage=2, expert_parallel=2)
    assert words in said and name in said and "copy the whole folder" in said


@pytest.mark.parametrize("experts", [1, 4])
def test_another_stage_or_precision_is_refused(experts: int, tmp_path: Path) -> None:
    model = {"num_experts": experts}
    plain = _saved(tmp_path / "plain", stage=0, model=model, optimizer="AdamW")
    zero = _saved(tmp_path / "zero", stage=2, model=model, optimizer="AdamW")
    common = {"model": model, "optimizer": "AdamW"}
    said = _said(plain, stage=1, **common)
    assert "saved without ZeRO, expected stage 1" in said and "set stage 0" in said
    assert "saved under ZeRO, expected stage 0 as here" in _said(zero, stage=0, **common)
    said = _said(plain, stage=0, precision="bf16", **common)
    assert "saved in fp32, expected a 16-bit precision as here" in said
    assert _said(zero, stage=1, **common) == "loaded True True"
    only = {"load_module_only": True}
    assert _said(plain, only, stage=2, **common) == "loaded True True"
    assert _said(zero, only, stage=0, **common) == "loaded True True"


def test_other_experts_are_refused(saved: Path, tmp_path: Path) -> None:
    said = _said(saved, stage=2, model={"num_experts": 2})
    assert "a model with 4 experts, expected 2 as here" in said
    assert "with 4 experts, expected none" in _said(saved, stage=2, model={"num_experts": 1})


def test_a_missing_scheduler_is_refused(saved: Path) -> None:
    common = {"stage": 2, "expert_parallel": 2, "processes": 2}
    said = _said(saved, config=SCHEDULER, **common)
    assert "no state of a scheduler, expected one of WarmupLR" in said
    options = {"load_lr_scheduler_states": False}
    assert _said(saved, options, config=SCHEDULER, **common) == "loaded True True"


def test_of_a_tag_that_is_saved_again_the_last_save_counts(tmp_path: Path) -> None:
    _saved(tmp_path, stage=2)
    _saved(tmp_path, stage=0)
    assert not list(tmp_path.glob("one/zero_pp_rank_*")), "expected no file of the first save"
    assert _said(tmp_path, stage=0) == "loaded True True"
    assert "saved without ZeRO, expected stage 2" in _said(tmp_path, stage=2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_stage_0_saves_in_16_bits_is_loaded(precision: str, tmp_path: Path) -> None:
    # its fp32 copies are tensors with attributes
    scenario = {"stage": 0, "precision": precision}
    assert _said(_saved(tmp_path, **scenario), **scenario) == "loaded True True"
