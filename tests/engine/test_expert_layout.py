"""Experts' copies inside a host and their tokens across hosts: other groups, the same training."""

from __future__ import annotations

import pytest
import torch
from deepspeed.moe.expert_layout import ranks_across
from support.ranks import run_ranks

# Sums of floats in another order, over eight steps.
TOLERANCE = 1e-5
SCENARIOS = [
    {"stage": 0},
    {"stage": 1, "flat": True},
    {"stage": 2, "flat": True, "accumulation": 2},
    {"stage": 2, "flat": False, "accumulation": 2},
]


def test_groups_of_eight_processes_on_two_hosts() -> None:
    share, same = ranks_across(8, 2)
    assert same == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert share == [[0, 4], [1, 5], [2, 6], [3, 7]]
    with pytest.raises(ValueError, match="3 does not divide 8"):
        ranks_across(8, 3)


def test_both_layouts_train_alike() -> None:
    """Four processes, two of which share experts; test_parallel.py compares with one process."""
    both = [
        {**scenario, "expert_parallel": 2, "expert_layout": layout}
        for scenario in SCENARIOS
        for layout in ("inside", "across")
    ]
    for results in run_ranks(4, "train_all", both):
        for inside, across in zip(results[::2], results[1::2]):
            for name in ("losses", "norms"):
                assert across[name] == pytest.approx(inside[name], rel=TOLERANCE)
            assert across["weights"].keys() == inside["weights"].keys()
            for name, weight in inside["weights"].items():
                torch.testing.assert_close(across["weights"][name], weight, rtol=0, atol=5e-5)


def test_experts_are_where_the_layout_puts_them() -> None:
    """Processes 0 and 1 of four hold the same experts across, and different ones inside."""
    for layout, equal in (("inside", False), ("across", True)):
        scenario = {"expert_parallel": 2, "expert_layout": layout}
        first, second, *_ = run_ranks(4, "own_expert_weights", scenario)
        assert torch.equal(first, second) == equal


def test_zero_s_state_is_refused_in_layout_across(tmp_path) -> None:
    scenario = {"expert_parallel": 2, "expert_layout": "across", "stage": 2}
    for said in run_ranks(4, "save_error", scenario, str(tmp_path)):
        assert "expected expert_layout 'inside', or ZeRO stage 0" in said
    assert not list(tmp_path.iterdir())
