"""ZeRO-1/2 with flat_gradients: exact sums, no waits, overflow, checkpoints, refusals.

That it trains to the same weights as one process is in test_parallel.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero import as_bytes
from support.ranks import run_ranks

FLAT = {"flat": True, "precision": "bf16", "accumulation": 32}


def test_gradients_are_summed_in_fp32() -> None:
    """32 micro-batches in bf16: their sum as if in fp64; the base's sum, in bf16, is not."""
    found = run_ranks(1, "summed_gradients", FLAT)[0]["apart"]
    base = run_ranks(1, "summed_gradients", {**FLAT, "flat": False})[0]["apart"]
    assert found < 1e-6 < 1e-3 < base


def test_no_wait_within_a_step() -> None:
    """The throughput timer waits where it starts, not in every micro-batch."""
    for flat in (True, False):
        scenario = {"flat": flat, "accumulation": 4}
        assert run_ranks(1, "waits_for_the_device", scenario, 2, 4) == [0]


STEP = {"reduce": "step", "bucket_size": 1500}
INT8 = {**STEP, "dtype": "int8"}


def test_an_overflow_skips_the_step() -> None:
    """Weights stay, the loss scale is halved, and the next step trains."""
    for stage, flat in ((1, True), (2, True), (1, STEP), (2, STEP), (2, INT8)):
        scenario = {"flat": flat, "stage": stage, "expert_parallel": 2}
        for result in run_ranks(2, "overflow", scenario):
            assert result == {"skipped": 1, "unchanged": True, "halved": True, "then": True}


def test_checkpoints_fit_the_base(tmp_path: Path) -> None:
    """Saved with flat_gradients, resumed without, and the other way round."""
    common = {"steps": 6, "expert_parallel": 2, "optimizer": "Adafactor"}
    for number, (flat, then) in enumerate(
        ((True, False), (False, True), (STEP, True), (True, STEP), (STEP, False), (False, STEP))
    ):
        folder = str(tmp_path / str(number))
        saved = run_ranks(2, "save_and_resume", {**common, "flat": flat}, folder, 3)
        resumed = run_ranks(2, "resume", {**common, "flat": then}, folder, 3)
        for one, other in zip(saved, resumed):
            assert other["losses"] == pytest.approx(one["expected"]["losses"], rel=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_traffic_does_not_grow_with_the_micro_batches(stage: int) -> None:
    """Reduced once a step: 8 micro-batches send what 1 sends; in each, much more."""

    def sent(flat: object, accumulation: int) -> list[int]:
        scenario = {"flat": flat, "stage": stage, "accumulation": accumulation}
        found = run_ranks(4, "bytes_in_a_step", {**scenario, "expert_parallel": 2})
        return [sum(given.values()) for given in found]

    for one, eight in zip(sent(STEP, 1), sent(STEP, 8)):
        assert 0 < eight <= 1.05 * one
    each = {"reduce": "micro_batch"}
    for one, eight in zip(sent(each, 1), sent(each, 8)):
        assert eight > 4 * one


def test_int8_halves_the_bytes_of_a_step() -> None:
    """Gradients and weights against 16 bit, at a size at which blocks are full."""
    common = {"precision": "bf16", "model": {"hidden_size": 64}, "expert_parallel": 2}
    plain, int8 = (
        run_ranks(4, "bytes_in_a_step", {**common, "flat": {"reduce": "step", **extra}})
        for extra in ({}, {"dtype": "int8"})
    )
    for one, other in zip(plain, int8):
        assert 0 < other["all_to_all_single"] <= 0.53 * one["reduce"]
        assert 0 < other["all_gather"] <= 0.53 * one["all_gather"]
        assert other["reduce"] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_of_int8_changes_follow_their_masters(precision: str) -> None:
    """Not further than one change's rounding, however many steps; equal on all processes."""
    scenario = {"steps": 12, "precision": precision, "expert_parallel": 1, "optimizer": "AdamW"}
    for found in run_ranks(2, "weights_behind_their_masters", {**scenario, "flat": INT8}):
        assert found["equal"]
        assert all(apart <= most for apart, most in zip(found["apart"], found["allowed"]))
        assert precision != "fp32" or max(found["apart"]) > 0  # changes are rounded indeed


def test_int8_trains_near_full_precision() -> None:
    """The losses of 8 steps of SGD on two processes, against messages in fp32 (one seed).

    An optimizer that divides by a gradient's size would amplify the rounding of small ones.
    """
    common = {"steps": 8, "expert_parallel": 2, "optimizer": "SGD"}
    exact, found = (
        run_ranks(2, "train_all", [{**common, "flat": flat}])[0][0]["losses"]
        for flat in (STEP, INT8)
    )
    assert found == pytest.approx(exact, rel=1e-3)
    assert found != exact and found[-1] < found[0]


def test_two_passes_before_a_step_are_added() -> None:
    """A second pass after the reduction has started loses nothing and counts nothing twice."""
    expected = run_ranks(2, "two_passes_before_a_step", {"flat": True})[0]
    found = run_ranks(2, "two_passes_before_a_step", {"flat": STEP})[0]
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"flat_gradients": "yes"}, "flat_gradients is 'yes'; expected true or false"),
        ({"flat_gradients": {"reduce": "once"}}, "reduce is 'once'; expected step or micro_batch"),
        ({"flat_gradients": {"reduc": "step"}}, "did you mean zero_optimization.flat_gradients.r"),
        ({"flat_gradients": {"dtype": "fp32"}}, "reduce is None; expected step or micro_batch"),
        ({"flat_gradients": {"reduce": "step", "dtype": "fp8"}}, "expected same, fp32, int8"),
        ({"flat_gradients": {"reduce": "micro_batch", "dtype": "int8"}}, "expected reduce step"),
        ({"flat_gradients": {"reduce": "step", "bucket_size": 0}}, "bucket_size is 0; expected"),
        ({"flat_gradients": {**STEP, "hierarchical": "no"}}, "hierarchical is 'no'; expected true"),
        ({"cpu_offload": True}, "cpu_offload is set; expected one of the two"),
        ({"stage": 3}, "flat_gradients is true with stage 3; expected stage 1 or 2"),
        ({"stage": 0}, "flat_gradients is true with stage 0; expected stage 1 or 2"),
        ({"stage": 1, "legacy_stage1": True}, "flat_gradients is true with legacy_stage1"),
    ],
)
def test_what_it_cannot_do_is_refused(config: dict, words: str) -> None:
    assert words in run_ranks(1, "start_error", config)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_bytes_by_shifts_are_those_of_memory(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch 1.10 has to take them, which cannot view a tensor in a type of another width."""
    generator = torch.Generator().manual_seed(3)
    memory = torch.randint(256, (4 * 257,), dtype=torch.uint8, generator=generator)
    values = torch.frombuffer(bytearray(memory.numpy().tobytes()), dtype=dtype)
    monkeypatch.setattr(as_bytes, "VIEWS_ANOTHER_WIDTH", False)
    assert torch.equal(as_bytes.to_bytes(values), memory)
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32}[values.element_size()]
    found = as_bytes.from_bytes(memory, dtype)
    assert found.dtype == dtype and torch.equal(found.view(whole), values.view(whole))
