"""A pipeline's checkpoint, saved under one layout and loaded under others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils.any_weights import any_whole_weights
from support.comparable import comparable
from support.ranks import run_ranks

HALF = 2
# Six micro-batches in every layout: (processes, stages, expert parallel, accumulation).
LAYOUTS = {
    "P1 dp1": (1, 1, 1, 6),
    "P2 dp1": (2, 2, 1, 6),
    "P1 dp2 ep2": (2, 1, 2, 3),
    "P2 dp2 ep2": (4, 2, 2, 3),
    "P2 dp2 ep1": (4, 2, 1, 3),
    "P4 dp1": (4, 4, 1, 6),
}


def scenario(layout: str, zero: int, optimizer: str, **more: Any) -> dict[str, Any]:
    _, stages, experts, accumulation = LAYOUTS[layout]
    return {
        "stages": stages,
        "expert_parallel": experts,
        "accumulation": accumulation,
        "stage": zero,
        "flat": bool(zero),
        "optimizer": optimizer,
        "steps": 4,
        **more,
    }


def check_resumed(
    saved_by: str, loaded_by: list[tuple[str, int]], optimizer: str, folder: Path, **more: Any
) -> None:
    """Weights are the same bit for bit after loading, and near after further steps; with the same
    layout these are the same too."""
    first = scenario(saved_by, 1, optimizer, **more)
    expected = run_ranks(LAYOUTS[saved_by][0], "save_piped", first, str(folder), HALF)[0]
    for layout, zero in loaded_by:
        wanted = [scenario(layout, zero, optimizer, **more)]
        found = run_ranks(LAYOUTS[layout][0], "resume_all_piped", wanted, str(folder), HALF)
        for rank, [result] in enumerate(found):
            where = f"rank {rank} of {layout}, ZeRO-{zero}, saved by {saved_by}"
            for name, weight in expected["saved"].items():
                assert torch.equal(result["saved"][name], weight), f"{where}: {name}"
            exact = (layout, zero) == (saved_by, 1)
            near = {"rel": 0 if exact else 1e-5}
            assert result["losses"] == pytest.approx(expected["losses"], **near), where
            assert result["norms"] == pytest.approx(expected["norms"], rel=near["rel"] * 10), where
            for name, weight in expected["weights"].items():
                apart = (comparable(name, result["weights"][name]) - comparable(name, weight)).abs()
                assert apart.max() <= (0 if exact else 1e-4), f"{where}: {name}"


def test_other_stages_experts_and_processes_load_it(tmp_path: Path) -> None:
    check_resumed(
        "P2 dp2 ep2",
        [("P2 dp2 ep2", 1), ("P1 dp1", 0), ("P2 dp1", 1)],
        "Adafactor",
        tmp_path,
    )


def test_a_checkpoint_has_the_whole_weights(tmp_path: Path) -> None:
    """What ``dsmoe export``, ``evaluate`` and ``generate`` read, of all stages and experts."""
    saved = run_ranks(4, "save_piped", scenario("P2 dp2 ep2", 0, "SGD"), str(tmp_path), HALF)[0]
    weights = any_whole_weights(tmp_path / "half")
    assert weights.keys() == saved["saved"].keys()
    for name, weight in saved["saved"].items():
        assert torch.equal(weights[name], weight), name


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "Adafactor"])
@pytest.mark.parametrize("saved_by", LAYOUTS)
def test_every_layout_loads_every_other(saved_by: str, optimizer: str, tmp_path: Path) -> None:
    others = [(layout, zero) for layout in LAYOUTS for zero in (0, 1)]
    more = {"config": {}}
    if optimizer == "SGD":
        rate = {"lr": 0.5, "momentum": 0.9}
        more = {"config": {"optimizer": {"type": "SGD", "params": rate}}}
    check_resumed(saved_by, others, optimizer, tmp_path, **more)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    first = scenario("P2 dp1", 1, "SGD")
    run_ranks(2, "save_piped", first, str(tmp_path), HALF)

    def said(**other: Any) -> str:
        found = run_ranks(2, "load_error_piped", {**first, **other}, str(tmp_path))
        assert found[0] == found[1], found  # no process goes on alone
        return found[0]

    assert "has the state of SGD, expected that of AdamW" in said(optimizer="AdamW")
    # the first stage of this one fits, the last does not
    assert "make the model as it was" in said(model={"num_layers": 6})
    assert "make the model as it was" in said(model={"num_layers": 4, "hidden_size": 8})
    plain = {"accumulation": 6, "stage": 0, "model": {"num_layers": 4}}
    assert "was saved by a pipeline" in run_ranks(1, "load_error", plain, str(tmp_path), "half")[0]
    missing = run_ranks(2, "load_error_piped", first, str(tmp_path), "none")[0]
    assert "has no checkpoint 'none', expected one of half" in missing
    run_ranks(1, "train_and_save", {"stage": 0}, str(tmp_path / "plain"), ["one"])
    other = run_ranks(2, "load_error_piped", first, str(tmp_path / "plain"), "one")[0]
    assert "was saved without a pipeline" in other
    (tmp_path / "half" / "pipeline_0001_optim_states.pt").write_bytes(b"damaged")
    assert "pipeline_0001_optim_states.pt is cut short or damaged" in said()
