"""The rest of DeepSpeed runs on a CPU with gloo: pipelines, ZeRO-3, zero.Init, checkpointing."""

from __future__ import annotations

import pytest
import torch
from support.ranks import run_ranks


@pytest.mark.parametrize("zero_stage", [0, 1])
@pytest.mark.parametrize("interval", [0, 1])
def test_a_pipeline_trains_like_one_process(interval: int, zero_stage: int) -> None:
    """Two stages, three micro-batches, with and without activation checkpoints."""
    for result in run_ranks(2, "pipeline_losses", interval, zero_stage):
        assert result["found"] == pytest.approx(result["expected"], rel=1e-4)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("init", [False, True])
def test_zero3_trains_like_one_process(init: bool, processes: int) -> None:
    for result in run_ranks(processes, "zero3_losses", init):
        assert result["found"] == pytest.approx(result["expected"], rel=1e-4)


def test_zero_init_makes_the_dtype_that_was_asked_for() -> None:
    """fp16 as the configuration says; torch.empty is its own again afterwards."""
    assert run_ranks(1, "dtypes_under_init")[0] == ["torch.float16", "torch.float32"]


def test_checkpoints_draw_the_same_dropout() -> None:
    plain, again = run_ranks(1, "checkpointed_gradients")[0]
    for a, b in zip(again, plain):
        torch.testing.assert_close(a, b)
    assert any(gradient.abs().sum() > 0 for gradient in plain)
