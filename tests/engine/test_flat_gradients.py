"""ZeRO-1/2 with flat_gradients: exact sums, no waits, overflow, checkpoints, refusals.

That it trains to the same weights as one process is in test_parallel.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
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


def test_an_overflow_skips_the_step() -> None:
    """Weights stay, the loss scale is halved, and the next step trains."""
    for stage in (1, 2):
        scenario = {"flat": True, "stage": stage, "expert_parallel": 2}
        for result in run_ranks(2, "overflow", scenario):
            assert result == {"skipped": 1, "unchanged": True, "halved": True, "then": True}


def test_checkpoints_fit_the_base(tmp_path: Path) -> None:
    """Saved with flat_gradients, resumed without, and the other way round."""
    common = {"steps": 6, "expert_parallel": 2, "optimizer": "Adafactor"}
    for flat in (True, False):
        folder = str(tmp_path / str(flat))
        saved = run_ranks(2, "save_and_resume", {**common, "flat": flat}, folder, 3)
        resumed = run_ranks(2, "resume", {**common, "flat": not flat}, folder, 3)
        for one, other in zip(saved, resumed):
            assert other["losses"] == pytest.approx(one["expected"]["losses"], rel=1e-5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"flat_gradients": "yes"}, "flat_gradients is 'yes'; expected true or false"),
        ({"cpu_offload": True}, "cpu_offload is set; expected one of the two"),
        ({"stage": 3}, "flat_gradients is true with stage 3; expected stage 1 or 2"),
        ({"stage": 0}, "flat_gradients is true with stage 0; expected stage 1 or 2"),
        ({"stage": 1, "legacy_stage1": True}, "flat_gradients is true with legacy_stage1"),
    ],
)
def test_what_it_cannot_do_is_refused(config: dict, words: str) -> None:
    assert words in run_ranks(1, "start_error", config)[0]
