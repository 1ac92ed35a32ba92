"""The fast path trains like the reference path: the same weights, step by step, for 50 steps.

Reference: dispatch by products over [G, S, E, C], attention written out, eager, the base's ZeRO.
Fast: dispatch by index, fused attention, torch.compile, flat gradients, GELU in the products and
the loss with the output layer; on GPUs a CUDA graph.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any, Sequence

import pytest
import torch
from deepspeed.moe.lm import compile_problem
from support.ranks import run_ranks

pytestmark = pytest.mark.skipif(compile_problem() is not None, reason=str(compile_problem()))
REFERENCE = {"moe_implementation": "einsum", "attention": "math"}
# Relative, of each of the 50 losses. fp32 sums in another order differ in the last bits, and
# training lets that grow. bf16 rounds every activation, in either path at other places, which now
# and then moves a token to another expert: single losses were seen 2.2e-2 off, on two GPUs and with
# other seeds, from the reference in bf16 as from that in fp32. So there half of the losses are held
# closer: seen at most 1.6e-3, as far as the reference in bf16 lies from the reference in fp32.
# Without the balance loss, or with a capacity 10 % larger, it is over 3.5e-3.
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}
MEDIANS = {"fp32": 1e-4, "bf16": 3e-3}
STEPS = 50
# With larger steps the two paths drift apart in bf16, and either drifts from fp32 as much.
ADAFACTOR = {"type": "Adafactor", "params": {"lr": 2e-2, "relative_step": False}}
OPTIMIZERS = {
    "SGD": {},
    "Adafactor": {"optimizer": "Adafactor", "config": {"optimizer": ADAFACTOR}},
}


def compare(
    fast: dict[str, Any],
    precision: str,
    processes: int = 1,
    optimizers: Sequence[str] = tuple(OPTIMIZERS),
    **common: Any,
) -> None:
    common = {"steps": STEPS, "precision": precision, "accumulation": 2, **common}
    for optimizer in map(OPTIMIZERS.__getitem__, optimizers):
        reference = reference_losses(processes, {**common, **optimizer, "model": REFERENCE})
        found = run_ranks(processes, "train_all", [{**common, **optimizer, **fast}])
        for expected, (one,) in zip(reference, found):
            assert expected[-1] < 0.8 * expected[0]
            assert one["losses"] == pytest.approx(expected, rel=TOLERANCES[precision])
            off = [abs(found / loss - 1) for found, loss in zip(one["losses"], expected)]
            assert statistics.median(off) < MEDIANS[precision]


_REFERENCES: dict[str, list[list[float]]] = {}


def reference_losses(processes: int, scenario: dict[str, Any]) -> list[list[float]]:
    """Of each process; trained once for all tests that compare with it."""
    key = repr((processes, scenario))
    if key not in _REFERENCES:
        results = run_ranks(processes, "train_all", [scenario])
        _REFERENCES[key] = [one["losses"] for (one,) in results]
    return _REFERENCES[key]


EAGER_KERNELS = {"flat": True, "compile": {"backend": "aot_eager"}}
# Every pair of precision, fused operators and optimizer: three more are long, and the rest slow.
LONG = [("fp32", False, "Adafactor"), ("bf16", False, "SGD"), ("bf16", True, "Adafactor")]
PAIRS = {("fp32", True, "SGD"): [], **dict.fromkeys(LONG, pytest.mark.long)}
WHOLE = [
    pytest.param(*case, marks=PAIRS.get(case, pytest.mark.slow))
    for case in itertools.product(TOLERANCES, (False, True), OPTIMIZERS)
]


@pytest.mark.parametrize(("precision", "fused", "optimizer"), WHOLE)
def test_fast_equals_reference(precision: str, fused: bool, optimizer: str) -> None:
    """Traced and differentiated ahead of time, but with the kernels of eager torch."""
    compare({**EAGER_KERNELS, "fused": fused}, precision, optimizers=[optimizer])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_shared_out_experts_are_trained_too(optimizer: str) -> None:
    """Two processes: the compiler of torch 2.11 lost the gradient behind the exchange."""
    fast = {**EAGER_KERNELS, "fused": True}
    compare(fast, "fp32", 2, [optimizer], expert_parallel=2)


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCES)
def test_generated_code_equals_reference(precision: str) -> None:
    """With the code that torch.compile generates for this device; also with remat."""
    for remat in (False, True):
        compare({"flat": True, "compile": {}, "model": {"remat": remat}}, precision)


ON_GPUS = {"flat": True, "compile": {}, "graph": True}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TOLERANCES)
def test_on_a_gpu(precision: str) -> None:
    """With generated code, and a micro-batch as a CUDA graph."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")
    compare(ON_GPUS, precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TOLERANCES)
def test_on_two_gpus(precision: str) -> None:
    """The same with the experts shared out, NCCL's kernels inside the graph."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, {torch.cuda.device_count()} here")
    compare(ON_GPUS, precision, 2, expert_parallel=2)
