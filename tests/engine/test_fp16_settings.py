"""The keys of "fp16" act at every stage, skipped steps are said, and skipping ends (38, 39)."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.ranks import run_ranks

KINDS = [{"stage": 0}, {"stage": 1}, {"stage": 2}, {"stage": 2, "flat": True}]
IDS = ["0", "1", "2", "flat"]


def case(kind: dict[str, Any], steps: int, **fp16: Any) -> dict[str, Any]:
    config = {"fp16": {"enabled": True, **fp16}}
    return {"precision": "fp16", "clip": 0.0, "steps": steps, "config": config, **kind}


def test_the_first_scale_is_the_same_at_every_stage() -> None:
    """{"enabled": true} alone, and with each of the other keys: 2^16, and every step is taken."""
    for more in ({}, {"hysteresis": 1}, {"min_loss_scale": 1}, {"loss_scale_window": 1000}):
        for kind in KINDS:
            found = run_ranks(1, "scales", case(kind, 3, **more))[0]
            assert found == {"scales": [2.0**16] * 3, "skipped": 0}, (kind, more)


@pytest.mark.parametrize("hysteresis", [1, 3])
def test_hysteresis_at_every_stage(hysteresis: int) -> None:
    """The scale falls at the last of so many overflows, and at each one after it."""
    expected = {1: [40, 39, 38, 37, 36], 3: [40, 40, 40, 39, 38]}[hysteresis]
    for kind in KINDS:
        fp16 = {"initial_scale_power": 40, "hysteresis": hysteresis}
        found = run_ranks(1, "scales", case(kind, 5, **fp16))[0]
        assert [math.log2(scale) for scale in found["scales"]] == expected, kind
        assert found["skipped"] == 5


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_the_default_hysteresis_is_1(kind: dict[str, Any]) -> None:
    found = run_ranks(1, "scales", case(kind, 3, initial_scale_power=40))[0]
    assert [math.log2(scale) for scale in found["scales"]] == [40, 39, 38]


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_skipped_step_is_one_line(kind: dict[str, Any]) -> None:
    """On the first process, with the step and both scales; nothing on the other."""
    first, second = run_ranks(2, "said_of_skipped_steps", case(kind, 2, initial_scale_power=40), "")
    assert [f"step {n}" in line for n, line in enumerate(first["lines"], 1)] == [True, True]
    assert f"loss scale {2**40} are" in first["lines"][0]
    assert f"becomes {2**39}" in first["lines"][0]
    assert second["lines"] == [] and first["error"] == second["error"] == ""


def test_a_static_scale_skips_with_one_line() -> None:
    for kind in KINDS:
        found = run_ranks(1, "said_of_skipped_steps", case(kind, 2, loss_scale=2.0**40), "")[0]
        assert len(found["lines"]) == 2 and "stays" in found["lines"][0], kind


ENDS = {
    "at its minimum": (
        "gradient",
        {"initial_scale_power": 2, "min_loss_scale": 2},
        ("at its minimum, 2", "min_loss_scale"),
    ),
    "static": ("gradient", {"loss_scale": 128.0}, ("static one, 128", "fp16.loss_scale to 0")),
    "NaN loss": ("loss", {}, ("the loss itself is not finite",)),
}


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("name", ENDS)
def test_endless_skipping_ends_with_the_reason(name: str, kind: dict[str, Any]) -> None:
    """On every process, also where only one has seen what is not finite."""
    bad, fp16, expected = ENDS[name]
    for found in run_ranks(2, "said_of_skipped_steps", case(kind, 40, **fp16), bad):
        assert all(part in found["error"] for part in expected), found
        assert found["steps"] <= 12


def test_zero_in_bf16_ends_too() -> None:
    """ZeRO skips steps that are not finite in every precision."""
    scenario = {"stage": 2, "precision": "bf16", "steps": 40}
    found = run_ranks(1, "said_of_skipped_steps", scenario, "gradient")[0]
    assert "lower the learning rate" in found["error"] and found["steps"] == 10


def test_overflows_that_end_do_not_end_the_run() -> None:
    """From 2^30 more steps than the limit are skipped: the scale falls, and training goes on."""
    for kind in KINDS:
        found = run_ranks(1, "said_of_skipped_steps", case(kind, 24, initial_scale_power=30), "")[0]
        assert found["error"] == "" and found["steps"] == 24, kind
