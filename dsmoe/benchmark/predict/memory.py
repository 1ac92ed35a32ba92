"""Bytes at the peak of a step on one process, by formula, for a search among many settings.

dsmoe plan counts the bytes of the real model (plan/); this is the same sum without the model, for
this project's method. tests/system/benchmark/test_predict.py holds the two together.
"""

from __future__ import annotations

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.pipelines import in_flight
from dsmoe.benchmark.predict.amounts.parameters import Part, held, parts, whole
from dsmoe.benchmark.predict.amounts.work import BYTES, sizes_of

#: Hidden states (T H e bytes) that a compiled layer keeps for its backward pass, beside its
#: feed-forward width: input, first norm's output, q, k and v, attention's output, residual.
_KEPT = 7
#: With dropout: the masks of both halves of a layer, bytes an element.
_MASKS = 2
#: Of remat: the layer's input and fused attention's output.
_REMAT_KEPT = 2
#: Numbers in 32 bit that a router keeps for each token and expert.
_ROUTER_KEPT = 3


def pipeline_peak_bytes(stage: Case, stages: int, schedule: str) -> int:
    """The peak of the largest of ``stages`` stages; ``stage`` is as stages.stage_case makes it."""
    found = enumerate(parts(stage.model, stage.remat, stages))
    return max(
        peak_bytes(stage, part, in_flight(stages, number, schedule, stage.micro_batches))
        for number, part in found
    )


def peak_bytes(case: Case, part: Part | None = None, held_at_once: int = 1) -> int:
    """The peak of a step of ``case``, whose layers are compiled and whose gradients are flat.

    ``part``: the stage's layers (None: the whole model); ``held_at_once``: micro-batches between
    their passes.
    """
    part = part or whole(case.model)
    own, s, width = held(case, part), sizes_of(case), BYTES[case.weight_precision]
    processes, copies = case.parallel.processes, case.parallel.copies
    cut = own.dense / processes + own.experts / copies
    if part.is_stage and not case.parallel.zero_stage:
        cut = float(own.whole)
    state = {"adafactor": 0.02, "adamw": 8.0, "sgd": 0.0}[case.optimizer]
    if case.adafactor_mode == "artifact" and case.optimizer == "adafactor":
        state = 8.0
    each = case.reduce == "micro_batch" or (case.reduce is None and case.parallel.zero_stage == 2)
    total = own.whole * width + (4 + state) * cut
    total += 4 * (cut if each and processes > 1 else own.whole)
    # of what more than one process has
    shared = (own.dense if processes > 1 else 0) + (own.experts if copies > 1 else 0)
    if case.reduce_dtype == "int8":  # what rounding took
        total += 4 * shared
    if each:  # messages: the whole, and this process's part
        parts_of_it = own.dense / processes + (own.experts / copies if copies > 1 else 0.0)
        total += width * (shared + (parts_of_it if processes > 1 else 0.0))
    rows = float(s.R * s.H * s.e)
    wide = float(s.F * s.e)
    layer = _KEPT * s.hidden + (_MASKS * s.T * s.H if s.dropout else 0)
    dense = layer + s.hidden + 2 * s.T * wide  # the second norm's output
    # a router's input in 32 bit
    routing = 4.0 * s.T * (s.H + _ROUTER_KEPT * s.E)
    mixture = layer + routing + 2 * rows + 2 * s.R * wide
    logits = float(s.T * s.V * s.e) if part.last else 0.0
    if case.remat:
        kept = (part.dense + part.mixtures) * _REMAT_KEPT * s.hidden
        most = kept + max(mixture + s.R * wide, logits)
    else:
        kept = part.dense * dense + part.mixtures * mixture
        # the last layer's backward pass makes its hidden width and the gradient of it anew
        last = s.R if part.mixtures >= part.dense else s.T
        most = kept + max(2 * last * wide, logits)
    # of micro-batches between their passes: what was sent on, too; and a message from each side
    waiting = (held_at_once - 1) * (kept + s.hidden * (not part.last))
    posted = s.hidden * ((not part.first) + (not part.last))
    # a micro-batch's gradients come as its activations go
    return int(total + posted + waiting + max(most, own.whole * width + mixture))
