"""The plan of a step against measured live tensor bytes of real steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.ranks import run_ranks

from dsmoe.benchmark.cases.case import Case, ModelCase, Parallel
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.plan.estimate import GRADIENTS_BY_BLOCK, simulated
from dsmoe.benchmark.predict.amounts.traffic import handed_over

# The count is of the same tensors; what is left is scalars and the fused kernel's own scratch.
TOLERANCE = 0.01
# With flat gradients the measured peak of one case was 1.6 % higher in one run of several, by
# 130,056 bytes. Why was not found; the reduction, which runs beside the next micro-batch there, is
# the suspect.
TOLERANCE_BESIDE = 0.03
MODEL = ModelCase("plan", 64, 4, 4, num_heads=4, sequence_length=64, vocab_size=1000)
BASE = Case(
    "plan", MODEL, Parallel(2, 2), 16, 2, "fp32", remat=False, dropout=0.0, optimizer="adamw"
)
CASES = {
    "zero 2, AdamW": BASE,
    "zero 2, AdaFactor, remat, bf16": replace(
        BASE, optimizer="adafactor", remat=True, precision="bf16"
    ),
    "zero 1, SGD": replace(BASE, optimizer="sgd", parallel=Parallel(2, 2, 1)),
    "zero 0, AdamW, dropout": replace(BASE, dropout=0.1, parallel=Parallel(2, 2, 0)),
    "zero 2, AdaFactor, one micro-batch": replace(BASE, optimizer="adafactor", micro_batches=1),
    "zero 2, AdaFactor, remat, bf16, flat": replace(
        BASE, optimizer="adafactor", remat=True, precision="bf16", flat_gradients=True
    ),
    "zero 2, AdaFactor, bf16, reduced once a step": replace(
        BASE, optimizer="adafactor", precision="bf16", flat_gradients=True, reduce="step"
    ),
    "zero 2, AdaFactor, bf16, once a step in int8": replace(
        BASE,
        optimizer="adafactor",
        precision="bf16",
        flat_gradients=True,
        reduce="step",
        reduce_dtype="int8",
    ),
    "zero 1, AdamW, flat": replace(BASE, parallel=Parallel(2, 2, 1), flat_gradients=True),
}
# Each part of the others (stage, optimizer, dropout, remat, reduction) is in one of FAST or LONG.
FAST = (
    "zero 0, AdamW, dropout",
    "zero 2, AdaFactor, remat, bf16, flat",
)
LONG = (
    "zero 2, AdaFactor, remat, bf16",
    "zero 2, AdaFactor, bf16, reduced once a step",
    "zero 1, AdamW, flat",
)
MARKS = {**dict.fromkeys(FAST, ()), **dict.fromkeys(LONG, pytest.mark.long)}
NAMES = [pytest.param(name, marks=MARKS.get(name, pytest.mark.slow)) for name in CASES]
# Smaller than the model, so that buckets fill in the middle of the backward pass.
BUCKET = 100_000


def config_of(case: Case) -> dict[str, Any]:
    config = deepspeed_config(case, "cpu")
    if "zero_optimization" in config:
        for name in ("reduce_bucket_size", "allgather_bucket_size"):
            config["zero_optimization"][name] = BUCKET
    return config


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest) -> dict[str, Case]:
    """The cases whose tests were selected."""
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    names = {call.params["name"] for call in calls if call and "name" in call.params}
    return {name: case for name, case in CASES.items() if name in names}


@pytest.fixture(scope="module")
def measured(asked: dict[str, Case]) -> dict[str, dict[str, Any]]:
    """Peak bytes and bytes sent on rank 0 of two real processes, by the name of the case."""
    pairs = [[case.to_dict(), config_of(case)] for case in asked.values()]
    return dict(zip(asked, run_ranks(2, "measured_steps", pairs)[0]))


@pytest.fixture(scope="module")
def planned(asked: dict[str, Case], checkout: Path) -> dict[str, dict[str, Any]]:
    """The plans of the same cases."""
    specs = [
        {"case": case.to_dict(), "config": config_of(case), "device": "cpu"}
        for case in asked.values()
    ]
    return dict(zip(asked, simulated(specs, checkout)))


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_what_a_real_step_takes(
    name: str, planned: dict[str, dict[str, Any]], measured: dict[str, dict[str, Any]]
) -> None:
    plan, real = planned[name], measured[name]
    tolerance = TOLERANCE_BESIDE if CASES[name].flat_gradients else TOLERANCE
    assert plan["peak"] == pytest.approx(real["peak"], rel=tolerance)
    assert sum(plan["kinds"].values()) == plan["peak"]
    assert all(plan["most"][kind] >= size for kind, size in plan["kinds"].items())
    case = CASES[name]
    # The experts' exchange is the real model's, to the byte.
    tokens = plan["sent"]["all-to-all"]
    assert tokens == handed_over(case)
    if case.reduce_dtype == "int8":  # a message's last block may be part empty
        blocks = real["sent"]["all-to-all"] - tokens
        assert plan["sent"][GRADIENTS_BY_BLOCK] == pytest.approx(blocks, rel=0.02)
        assert plan["sent"]["all-gather"] == pytest.approx(real["sent"]["all-gather"], rel=0.02)
        return
    assert tokens == real["sent"]["all-to-all"] > 0
    # Every parameter's gradient is reduced, the experts' over a group of one process; the plan
    # leaves those out, which cost nothing.
    times = case.micro_batches if case.parallel.zero_stage == 2 else 1
    size = 2 if case.precision == "bf16" else 4
    width, hidden = MODEL.hidden_size, MODEL.hidden_size * MODEL.ffn_multiplier
    experts = 2 * 2 * (2 * width * hidden + hidden + width)  # 2 layers, 2 experts a process
    if case.reduce == "step":
        dense = (plan["local_parameters"] - experts) * 2
        assert plan["sent"]["reduce"] == real["sent"]["reduce"] == dense
        return
    if case.flat_gradients:  # the dense parameters, with padding; the experts are not reduced
        size = 2 if case.parallel.zero_stage == 2 and case.precision == "bf16" else 4
        dense = (plan["local_parameters"] - experts) * size * times
        assert plan["sent"]["all-reduce"] == pytest.approx(dense, abs=4 * size * times)
        assert real["sent"]["all-reduce"] >= plan["sent"]["all-reduce"]
        return
    kind = "reduce" if case.parallel.zero_stage else "all-reduce"
    if case.parallel.zero_stage:
        assert real["sent"][kind] == plan["local_parameters"] * size * times
    assert plan["sent"][kind] == (plan["local_parameters"] - experts) * size * times
