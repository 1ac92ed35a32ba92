"""AdaFactor through the engine: factored under ZeRO, equal to whole parameters, resumable."""

from __future__ import annotations

import pytest
import torch
from support.comparable import comparable
from support.ranks import run_ranks

ADAFACTOR = {"optimizer": "Adafactor", "expert_parallel": 2, "steps": 5}


def test_zero_equals_whole_parameters() -> None:
    """ZeRO-1 and -2 cut parameters at partition boundaries; stage 0 sees them whole."""
    scenarios = [{**ADAFACTOR, "stage": stage} for stage in (0, 1, 2)]
    for whole, *sharded in run_ranks(2, "train_all", scenarios):
        for result in sharded:
            assert result["losses"] == pytest.approx(whole["losses"], rel=1e-5)
            for name, weight in whole["weights"].items():
                torch.testing.assert_close(
                    comparable(name, result["weights"][name]),
                    comparable(name, weight),
                    rtol=0,
                    atol=5e-5,
                )


def test_state_is_factored_under_zero() -> None:
    """Far fewer statistics than elements; in artifact mode one for every element."""
    sizes = run_ranks(2, "adafactor_state_sizes", ADAFACTOR)
    for result in sizes:
        assert result["sharded"] < 0.4 * result["elements"]
        assert result["artifact"] == result["elements"]


def test_16_bit_without_zero_equals_zero() -> None:
    """Stage 0 has an fp32 copy of each parameter; in it stacked experts stay apart too."""
    common = {**ADAFACTOR, "expert_parallel": 1, "precision": "fp16"}
    scenarios = [{**common, "stage": stage} for stage in (0, 2)]
    whole, sharded = run_ranks(1, "train_all", scenarios)[0]
    assert whole["losses"] == pytest.approx(sharded["losses"], rel=1e-4)
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(
            comparable(name, sharded["weights"][name]), comparable(name, weight), rtol=0, atol=2e-3
        )
