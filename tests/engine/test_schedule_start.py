"""The first step has the schedule's first rate, not the optimizer's (defect 34)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.ranks import run_ranks

FIRST = {
    "WarmupLR": ({"warmup_min_lr": 0.02, "warmup_max_lr": 0.1, "warmup_num_steps": 4}, 0.02),
    "WarmupDecayLR": (
        {"warmup_min_lr": 0.02, "warmup_max_lr": 0.1, "warmup_num_steps": 2, "total_num_steps": 9},
        0.02,
    ),
    "OneCycle": ({"cycle_min_lr": 0.03, "cycle_max_lr": 0.1, "cycle_first_step_size": 3}, 0.03),
    "LRRangeTest": ({"lr_range_test_min_lr": 0.04, "lr_range_test_step_size": 1}, 0.04),
    "LinearLR": ({"start_factor": 0.5, "total_iters": 4}, 0.25),
}


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("name", FIRST)
def test_step_1_has_the_first_rate(name: str, stage: int) -> None:
    """The optimizer's own is 0.5. The later ones are what they were: rate n - 1 at step n + 1."""
    if name == "LinearLR" and not hasattr(torch.optim.lr_scheduler, name):
        pytest.skip("this torch has no LinearLR")
    params, first = FIRST[name]
    schedule = {"type": name, "params": params}
    found = run_ranks(1, "first_rates", {"stage": stage}, schedule)[0]
    rates = [rate for rate, _ in found]
    assert rates[0] == pytest.approx(first)
    assert rates[3] > rates[0]
    if name == "WarmupLR":  # logarithmic, from the second step on
        assert rates[1:] == pytest.approx([0.02, 0.06, 0.02 + 0.08 * 0.79248125])


def test_torchs_schedulers_by_name() -> None:
    """Under ZeRO and in 16 bit too, where the engine's optimizer is not torch's (defect 31)."""
    schedule = {"type": "StepLR", "params": {"step_size": 1, "gamma": 0.5}}
    for case in ({"stage": 2}, {"stage": 0, "precision": "bf16"}):
        found = run_ranks(1, "first_rates", case, schedule)[0]
        assert [rate for rate, _ in found] == [0.5, 0.25, 0.125, 0.0625]


def test_one_cycle_starts_at_the_high_momentum() -> None:
    """Momentum falls while the rate rises: it starts at its maximum."""
    params = {**FIRST["OneCycle"][0], "cycle_min_mom": 0.6, "cycle_max_mom": 0.9}
    case = {"stage": 2, "optimizer": "AdamW"}
    found = run_ranks(1, "first_rates", case, {"type": "OneCycle", "params": params})[0]
    assert [momentum for _, momentum in found] == pytest.approx([0.9, 0.8, 0.7, 0.6])


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.5)


@pytest.mark.parametrize("name", ["WarmupLR", "WarmupDecayLR", "OneCycle", "LRRangeTest"])
def test_a_given_iteration_sets_the_rate(name: str) -> None:
    """last_batch_iteration=2 is a scheduler after its third step."""
    from deepspeed.runtime import lr_schedules

    kind: Any = getattr(lr_schedules, name)
    params = FIRST[name][0]
    stepped, given = optimizer(), optimizer()
    scheduler = kind(stepped, **params)
    assert scheduler.get_last_lr() == [stepped.param_groups[0]["lr"]]
    for _ in range(3):
        scheduler.step()
    kind(given, last_batch_iteration=2, **params)
    assert given.param_groups[0]["lr"] == pytest.approx(stepped.param_groups[0]["lr"])
