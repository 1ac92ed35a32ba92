"""Checkpoints: exact resume, files read as data, damage and other layouts refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.comparable import comparable
from support.ranks import run_ranks

SMALL = {"steps": 6, "expert_parallel": 2}


def test_resume_is_exact(tmp_path: Path) -> None:
    """The steps after a resume repeat those without it to the last bit, weights included.

    On GPUs to 1e-6: torch's gradient of an embedding adds in an order of chance there. So under
    AdamW at stage 0: the gradient of the keys' bias is 0 but for rounding, which depends on where
    tensors lie in memory, and Adam makes whole steps of it; the loss feels them in its last bits.
    """
    scenarios = [
        {**SMALL, "stage": 2, "optimizer": "Adafactor"},
        {**SMALL, "stage": 1, "optimizer": "AdamW"},
        {**SMALL, "stage": 0, "optimizer": "AdamW", "model": {"moe_implementation": "index"}},
        {**SMALL, "stage": 2, "optimizer": "Adafactor", "precision": "fp16", "flip_groups": True},
        {**SMALL, "stage": 2, "optimizer": "Adafactor", "flat": True},
        {**SMALL, "stage": 1, "optimizer": "AdamW", "precision": "bf16", "flat": True},
    ]
    for results in run_ranks(2, "save_and_resume_all", scenarios, str(tmp_path), 3):
        for scenario, result in zip(scenarios, results):
            expected, resumed = result["expected"], result["resumed"]
            rounding = (scenario["stage"], scenario["optimizer"]) == (0, "AdamW")
            apart = 1e-6 if rounding or torch.cuda.is_available() else 0.0
            assert resumed["losses"] == pytest.approx(expected["losses"], rel=apart), scenario
            for name, weight in expected["weights"].items():
                found = resumed["weights"][name]
                if rounding:
                    found, weight = comparable(name, found), comparable(name, weight)
                assert torch.allclose(found, weight, rtol=apart, atol=apart), (scenario, name)


def test_scalar_state_is_saved_whole(tmp_path: Path) -> None:
    """Today's AdamW keeps its step as a 0-dim tensor; the ZeRO file holds it as it is."""
    scenario = {"stage": 2, "optimizer": "AdamW", "model": {"num_experts": 4}}
    run_ranks(2, "train_and_save", scenario, str(tmp_path), ["one"])
    for rank in range(2):
        path = tmp_path / "one" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        saved = torch.load(path, weights_only=False)["optimizer_state_dict"]
        for state in saved["base_optimizer_state"]:
            assert state["step"].dim() == 0 and state["step"] == 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Two checkpoints of a run of two processes with expert parallel size 2."""
    folder = tmp_path_factory.mktemp("saved")
    weights = run_ranks(2, "train_and_save", SMALL, str(folder), ["first", "second"])[0]
    return folder, weights


def test_missing_zero_files_fall_back_to_the_weights(saved: tuple[Path, dict], tmp_path: Path):
    folder, weights = _copy(saved, tmp_path)
    (folder / "second" / "manifest.sha256").unlink()
    for path in folder.glob("second/zero_pp_rank_*"):
        path.unlink()
    for result in run_ranks(2, "weights_after_loading", SMALL, str(folder), None, False):
        _same(result["weights"], weights)
        assert len(result["masters"]) == 2


def test_weights_load_at_another_expert_parallel_size(saved: tuple[Path, dict]) -> None:
    folder, weights = saved
    scenario = {**SMALL, "expert_parallel": 1}
    whole = run_ranks(1, "weights_after_loading", scenario, str(folder), None, True)[0]
    _same(whole["weights"], weights)
    # ZeRO's fp32 masters follow, or the first step would bring the old weights back.
    flat = torch.cat([p.flatten() for p in whole["masters"]])
    assert torch.isclose(flat.sum(), sum(w.sum() for w in weights.values()), atol=1e-3)


def test_foreign_pickle_is_refused(saved: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = _copy(saved, tmp_path)
    (folder / "second" / "manifest.sha256").unlink()
    proof = tmp_path / "ran"
    for name in (
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "expert_1_mp_rank_00_model_states.pt",
    ):
        torch.save(_Planted(str(proof)), folder / "second" / name)
        said = run_ranks(2, "load_error", SMALL, str(folder), "second")
        assert any("was refused" in text and name in text for text in said), said
        assert not proof.exists()
        (folder / "second" / name).write_bytes((saved[0] / "second" / name).read_bytes())


def test_cut_off_file_is_named_and_the_one_before_loads(saved: tuple[Path, dict], tmp_path: Path):
    folder, _ = _copy(saved, tmp_path)
    victim = folder / "second" / "expert_0_mp_rank_00_model_states.pt"
    victim.write_bytes(victim.read_bytes()[:-200])
    said = run_ranks(2, "load_error", SMALL, str(folder), "second")
    assert any("cut short or damaged" in text and victim.name in text for text in said), said
    assert run_ranks(2, "load_error", SMALL, str(folder), "first") == ["", ""]


def test_a_stopped_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """Every file is written beside its name: one that is torn does not replace the former."""
    result = run_ranks(1, "save_that_is_stopped", {"stage": 2}, str(tmp_path))[0]
    assert result["stopped"]
    _same(result["loaded"], result["saved"])
    assert (tmp_path / "latest").read_text() == "one"


class _Planted:
    """A pickle that would write a file when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def _copy(saved: tuple[Path, dict], tmp_path: Path) -> tuple[Path, dict]:
    shutil.copytree(saved[0], tmp_path / "copy")
    return tmp_path / "copy", saved[1]


def _same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def test_resume_with_more_processes(tmp_path: Path) -> None:
    """From two processes to four at expert parallel size 2: the same steps, up to rounding."""
    common = {"steps": 6, "expert_parallel": 2, "optimizer": "Adafactor"}
    two = {**common, "accumulation": 2}
    expected = run_ranks(2, "save_and_resume_all", [two], str(tmp_path), 3)[0][0]["expected"]
    for result in run_ranks(4, "resume", {**common, "accumulation": 1}, f"{tmp_path}/0", 3):
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5)
