"""Bytes at the peak of a step on one process, by formula, for a search among many settings.

dsmoe plan counts the bytes of the real model (plan/); this is the same sum without the model, for
this project's method. tests/system/benchmark/test_predict.py holds the two together.
"""

from __future__ import annotations

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.predict.parameters import held
from dsmoe.benchmark.predict.work import BYTES, sizes_of

#: Hidden states (T H e bytes) that a compiled layer keeps for its backward pass, beside its
#: feed-forward width: input, two norms' outputs, q, k and v, attention's output, residual.
_KEPT = 8
#: Of remat: the layer's input and fused attention's output.
_REMAT_KEPT = 2


def peak_bytes(case: Case, in_flight: int = 1) -> int:
    """The peak of a step of ``case``, whose layers are compiled and whose gradients are flat.

    ``in_flight``: micro-batches between their passes, in the first stage of a pipeline.
    """
    own, s, width = held(case), sizes_of(case), BYTES[case.weight_precision]
    processes, copies = case.parallel.processes, case.parallel.copies
    part = own.dense / processes + own.experts / copies
    state = {"adafactor": 0.02, "adamw": 8.0, "sgd": 0.0}[case.optimizer]
    if case.adafactor_mode == "artifact" and case.optimizer == "adafactor":
        state = 8.0
    each = case.reduce == "micro_batch" or (case.reduce is None and case.parallel.zero_stage == 2)
    total = own.whole * width + (4 + state) * part
    total += 4 * (part if each and processes > 1 else own.whole)
    if case.reduce_dtype == "int8" and processes > 1:  # what rounding took
        total += 4 * own.whole
    if each:
        shared = (own.dense if processes > 1 else 0) + (own.experts if copies > 1 else 0)
        total += width * (shared + part)
    rows = float(s.R * s.H * s.e)
    wide = float(s.F * s.e)
    dense = _KEPT * s.hidden + 2 * s.T * wide
    mixture = _KEPT * s.hidden + 2 * rows + 2 * s.R * wide
    half = case.model.num_layers // 2
    logits = float(s.T * s.V * s.e)
    if case.remat:
        inputs = case.model.num_layers * _REMAT_KEPT * s.hidden
        activations = in_flight * inputs + max(mixture + s.R * wide, logits)
    else:
        activations = in_flight * half * (dense + mixture) + logits
    # a micro-batch's gradients come as the activations go
    return int(total + max(activations, own.whole * width + mixture))
