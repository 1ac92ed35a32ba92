"""The plan of a pipeline against live tensor bytes of real steps, stage by stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.ranks import run_ranks

from dsmoe.benchmark.cases.case import Case, ModelCase, Parallel
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.plan.estimate import simulated

MODEL = ModelCase("plan", 64, 4, 4, num_heads=4, sequence_length=64, vocab_size=1000)
BASE = Case(
    "plan", MODEL, Parallel(4, 2, 1, pipeline_parallel_size=2), 32, 4, "fp32", remat=False,
    dropout=0.0, flat_gradients=True, second_expert_policy="all",
)  # fmt: skip
CASES = {
    "ZeRO-1, AdaFactor": BASE,
    "ZeRO-1, AdamW, bf16, remat": replace(BASE, optimizer="adamw", precision="bf16", remat=True),
    "ZeRO-0, SGD": replace(
        BASE, parallel=replace(BASE.parallel, zero_stage=0), flat_gradients=False, optimizer="sgd"
    ),
}


FIRST, *OTHERS = CASES


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_each_stage_takes_what_is_planned(name: str, checkout: Path) -> None:
    case = CASES[name]
    config = deepspeed_config(case, "cpu")
    [plan] = simulated([{"case": case.to_dict(), "config": config, "device": "cpu"}], checkout)
    for found in run_ranks(4, "measured_stage", case.to_dict(), config):
        stage = plan["stages"][found["stage"]]
        assert stage["peak"] == pytest.approx(found["peak"], rel=0.05), (stage, found)
        assert stage["sent"]["all-to-all"] == found["sent"]["all-to-all"] > 0
        hidden = stage["sent"].get("hidden states", 0) + stage["sent"].get("their gradients", 0)
        element = 4 if case.precision == "fp32" else 2
        assert hidden == 16 * MODEL.sequence_length * MODEL.hidden_size * element
    assert plan["peak"] == max(stage["peak"] for stage in plan["stages"])
