"""get_global_grad_norm() is the 2-norm of the loss's gradients (defect 36).

The oracle is plain torch without an engine: scenarios.reference.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.ranks import run_ranks

STEPS = {"steps": 3, "clip": 0.0}


def expected(micro_batches: int, **more: Any) -> list[float]:
    """Norms of one process; ``reference`` clips, so a threshold that is never reached."""
    scenario = {**STEPS, "clip": 1e9, **more}
    return run_ranks(1, "references", [(scenario, micro_batches)])[0][0]["norms"]


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_norm_in_fp32(stage: int, clip: float) -> None:
    """A number also without ZeRO, where nothing asked for one unless gradients were clipped."""
    wanted = expected(2, clip=clip or 1e9)
    case = {**STEPS, "stage": stage, "clip": clip, "expert_parallel": 2}
    for _, *found in run_ranks(2, "norms", case):
        assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    "kind",
    [{"stage": 0}, {"stage": 1}, {"stage": 2}, {"stage": 2, "flat": True}],
    ids=["0", "1", "2", "flat"],
)
def test_the_norm_does_not_depend_on_the_loss_scale(kind: dict[str, Any]) -> None:
    """fp16, static and growing scales; 1e-2 is fp16's rounding of the weights."""
    wanted = expected(1)
    scales = [
        {"enabled": True, "loss_scale": 1.0},
        {"enabled": True, "loss_scale": 128.0},
        {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 1},
    ]
    for scale in scales:
        case = {**STEPS, **kind, "precision": "fp16", "config": {"fp16": scale}}
        _, *found = run_ranks(1, "norms", case)[0]
        assert found == pytest.approx(wanted, rel=1e-2), scale


def test_fused_norm_counts_the_experts() -> None:
    """The fused optimizer of 16 bit on two processes with two experts each."""
    adam = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
    case = {
        **STEPS,
        "steps": 1,
        "stage": 0,
        "precision": "fp16",
        "expert_parallel": 2,
        "optimizer": "AdamW",
        "config": {"optimizer": adam, "fp16": {"enabled": True, "loss_scale": 16.0}},
        "fused_optimizer": True,
    }
    wanted = expected(2, steps=1)
    for kind, *found in run_ranks(2, "norms", case):
        assert kind == "FP16_Optimizer"
        assert found == pytest.approx(wanted, rel=1e-2)


def test_a_skipped_step_has_an_infinite_norm() -> None:
    assert run_ranks(1, "norm_of_a_skipped_step")[0] == [float("inf")] * 2


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_a_pipeline_clips_by_the_norm_of_all_stages(clip: float) -> None:
    """Two stages in fp32: losses of four steps, then the norm of the last, equal one process's."""
    for result in run_ranks(2, "pipeline_losses", 0, 0, clip):
        assert result["found"] == pytest.approx(result["expected"], rel=1e-4)
