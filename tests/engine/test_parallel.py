"""One process is the definition: any number of processes trains to the same losses and weights.

The reference is plain torch without an engine (scenarios.reference) for fp32, and the engine in
one process for 16 bit, where the rounding of the engine's own copies is part of the result.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from support.one_process import References, compare
from support.ranks import run_ranks
from support.scenarios import full


@pytest.fixture(scope="module")
def references() -> References:
    return References()


def test_the_reference_learns_and_clips() -> None:
    """What the others are compared with is a training run in which all that matters happens."""
    result = run_ranks(1, "references", [({}, 2)])[0][0]
    assert result["losses"][-1] < 0.9 * result["losses"][0]
    assert min(result["norms"]) > full({})["clip"]


def test_processes_equal_one_process(references: References) -> None:
    """Two processes: ZeRO 0, 1, 2 x expert parallel 1, 2 x accumulation 1, 2, fp32, SGD."""
    grid = itertools.product((0, 1, 2), (1, 2), (1, 2))
    scenarios = [{"stage": z, "expert_parallel": e, "accumulation": a} for z, e, a in grid]
    compare(scenarios, 2, references)


def test_optimizers_and_precisions(references: References) -> None:
    """Two processes: a sample of the other optimizers and of 16 bit."""
    scenarios: list[dict[str, Any]] = [
        {"stage": 0, "expert_parallel": 2, "optimizer": "Adafactor"},
        {"stage": 1, "expert_parallel": 2, "optimizer": "AdamW"},
        {"stage": 2, "expert_parallel": 2, "optimizer": "AdamW"},
        {"stage": 2, "expert_parallel": 2, "optimizer": "Adafactor"},
        {"stage": 0, "expert_parallel": 2, "precision": "bf16"},
        {"stage": 1, "expert_parallel": 2, "precision": "bf16"},
        {"stage": 2, "expert_parallel": 2, "precision": "bf16", "optimizer": "Adafactor"},
        {"stage": 2, "expert_parallel": 2, "precision": "fp16"},
    ]
    compare(scenarios, 2, references)


def test_four_processes(references: References) -> None:
    """Experts over two and over four of four processes, the groups in either order, hosts first."""
    scenarios = [
        {"stage": 2, "expert_parallel": 2},
        {"stage": 2, "expert_parallel": 4, "flip_groups": True},
        {"stage": 1, "expert_parallel": 2, "flip_groups": True},
        {"stage": 0, "expert_parallel": 4, "hosts": 2},
    ]
    compare(scenarios, 4, references)


def test_flat_gradients_equal_one_process(references: References) -> None:
    """The same with flat_gradients, which takes the gradients of a micro-batch together."""
    one = [{"stage": z, "accumulation": a, "flat": True} for z in (1, 2) for a in (1, 2)]
    compare(one, 1, references)


def test_flat_gradients_on_two_processes(references: References) -> None:
    """ZeRO 1, 2 x expert parallel 1, 2 x accumulation 1, 2; a sample of the rest."""
    grid = itertools.product((1, 2), (1, 2), (1, 2))
    two = [{"stage": z, "expert_parallel": e, "accumulation": a} for z, e, a in grid]
    two += [
        {"stage": 2, "expert_parallel": 2, "optimizer": "Adafactor"},
        {"stage": 1, "expert_parallel": 2, "optimizer": "AdamW"},
        {"stage": 2, "expert_parallel": 2, "precision": "bf16", "optimizer": "Adafactor"},
        {"stage": 2, "expert_parallel": 2, "precision": "fp16"},
    ]
    compare([{**scenario, "flat": True} for scenario in two], 2, references)


def test_flat_gradients_on_four_processes(references: References) -> None:
    four = [{"stage": 2, "expert_parallel": 2}, {"stage": 1, "expert_parallel": 4}]
    compare([{**scenario, "flat": True, "flip_groups": True} for scenario in four], 4, references)


#: Reduced once a step, in several buckets.
STEP = {"reduce": "step", "bucket_size": 1500}
IN_FP32 = {**STEP, "dtype": "fp32"}


def test_gradients_reduced_once_a_step_on_two_processes(references: References) -> None:
    """ZeRO 1, 2 x expert parallel 1, 2 x accumulation 1, 2; a sample of the rest."""
    grid = [*itertools.product((1, 2), (1, 2), (1, 2)), (1, 2, 8), (2, 1, 8)]
    two: list[dict[str, Any]] = [
        {"stage": z, "expert_parallel": e, "accumulation": a, "flat": STEP} for z, e, a in grid
    ]
    two += [
        {"stage": 1, "flat": {"reduce": "micro_batch"}, "accumulation": 2},
        {"stage": 2, "flat": {"reduce": "micro_batch", "dtype": "fp32"}, "accumulation": 2},
        {"stage": 2, "expert_parallel": 2, "optimizer": "Adafactor", "flat": STEP},
        {"stage": 1, "expert_parallel": 1, "optimizer": "Adafactor", "flat": STEP},
        {"stage": 1, "expert_parallel": 2, "optimizer": "AdamW", "flat": STEP},
    ]
    compare(two, 2, references)


# On 0.5.4 test_optimizers_and_precisions has 16 bit, and the test above has the hooks of this
# reduction, whose body is the same file on both bases.
@pytest.mark.long
@pytest.mark.slow_on("0.5.4")
def test_gradients_in_16_bit_reduced_once_a_step(references: References) -> None:
    """bf16 and fp16, in messages of the model's dtype and in fp32."""
    two: list[dict[str, Any]] = [
        {"stage": z, "precision": p, "flat": f, "accumulation": 2, "expert_parallel": z}
        for z, p, f in itertools.product((1, 2), ("bf16", "fp16"), (STEP, IN_FP32))
    ]
    two += [{**two[4], "optimizer": "Adafactor"}, {**two[6], "optimizer": "Adafactor"}]
    compare(two, 2, references)


@pytest.mark.long
@pytest.mark.slow_on("0.5.4")
def test_gradients_reduced_once_a_step_on_one_and_four_processes(references: References) -> None:
    one = [{"stage": z, "accumulation": a, "flat": STEP} for z in (1, 2) for a in (1, 2)]
    compare(one, 1, references)
    four = [{"stage": 2, "expert_parallel": 2}, {"stage": 1, "expert_parallel": 2}]
    compare(
        [{**s, "flat": STEP, "flip_groups": f} for s in four for f in (False, True)], 4, references
    )


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_whole_matrix(references: References, processes: int, precision: str) -> None:
    scenarios = [
        {
            "stage": stage,
            "expert_parallel": experts,
            "accumulation": accumulation,
            "optimizer": optimizer,
            "precision": precision,
        }
        for stage, experts, accumulation, optimizer in itertools.product(
            (0, 1, 2), (1, 2, 4), (1, 2), ("SGD", "AdamW", "Adafactor")
        )
        if processes % experts == 0
    ]
    compare(scenarios, processes, references)
