"""Weights that are loaded stay: one step with lr 0 leaves them as they were loaded (defect 33)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ranks import run_ranks

CASES = [
    {"stage": 2},
    {"stage": 0, "precision": "bf16"},
    {"stage": 1, "precision": "bf16"},
    {"stage": 2, "precision": "bf16"},
    {"stage": 2, "precision": "bf16", "flat": True},
    {"stage": 0, "precision": "fp16"},
    {"stage": 2, "precision": "fp16"},
]
WAYS = {
    "load_module_only": CASES,
    "load_optimizer_states": CASES,
    "module": CASES,  # its load_state_dict
    "engine": CASES[1:3],  # its load_module_state_dict
}


@pytest.mark.parametrize("how", WAYS)
def test_loaded_weights_stay(how: str, tmp_path: Path) -> None:
    """In each precision and ZeRO stage, by load_checkpoint and by load_state_dict."""
    for number, case in enumerate(WAYS[how]):
        folder = f"{tmp_path}/{number}"
        found = run_ranks(1, "weights_after_a_still_step", case, folder, how)[0]
        assert found == {"loaded": 0.0, "stepped": 0.0}, case


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_masters_are_loaded_without_states(precision: str, tmp_path: Path) -> None:
    """Without ZeRO they come from the checkpoint in fp32, as under ZeRO, not from the weights."""
    case = {"stage": 0, "precision": precision}
    assert run_ranks(1, "masters_after_loading", case, str(tmp_path))[0]


def test_a_copy_of_the_module_moves_nothing() -> None:
    assert run_ranks(1, "copies_of_the_module", {"stage": 2, "precision": "bf16"})[0]
