"""Floating-point operations of one training step, by two formulas, each with its name.

Multiply and add count as two. B sequences of S tokens, width H, L layers (half of them mixtures
of E experts, k experts a token), vocabulary V, feed-forward width f·H.

``artifact``: what the artifact's rows report (alpa-projects/alpa, benchmark/util.py,
``compute_moe_tflops`` at commit 8350d913). It counts the one-hot dispatch and combine products,
whose size a token grows with the group, and the recomputation of remat, so two settings that
train the same model at the same speed can have very different figures. It holds for k = 2 and is
the same for any other k.

``useful``: what the model's own matrices need, whatever the dispatch, the group or remat.
Tokens a second is the figure to compare settings by; useful FLOPs are proportional to it.
"""

from __future__ import annotations

from typing import Callable

from dsmoe.benchmark.cases.case import Case, ModelCase

TERA = 1e12


def artifact_flop(model: ModelCase, global_batch_size: int, group: int, remat: bool) -> int:
    """Operations of one step by the artifact's formula; ``group`` tokens a dispatch group.

    A forward pass is counted once, a backward pass twice, remat's second forward pass once more:
    a factor of 4 with ``remat``, else 3. Forward, for each token:

    - attention: 8H² for the four matrices, 4·S·H for scores and weighted values (no causal half);
    - dense feed-forward: 2 matrices, 2·f·H² each: 4·f·H²;
    - experts: two experts a token: 8·f·H²;
    - gate: 2·H·E; top-2 masks: 4·G; dispatch and combine: 2·H·(2G) each: 8·H·G;
    - output layer: 2·H·V forward, 6·H·V in all, never recomputed.

    The artifact's script takes for G the tokens of one micro-batch on one process.
    """
    h, s, f = model.hidden_size, model.sequence_length, model.ffn_multiplier
    attention = 8 * h * h + 4 * s * h
    dense = attention + 4 * f * h * h
    experts = 8 * f * h * h + 2 * h * model.num_experts
    mixture = attention + experts + 4 * group + 8 * h * group
    factor = 4 if remat else 3
    token = factor * (model.num_layers // 2) * (dense + mixture) + 6 * h * model.vocab_size
    return global_batch_size * s * token


def useful_flop(model: ModelCase, global_batch_size: int) -> int:
    """Operations of one step that the model's matrices need: 3 times the forward pass.

    Forward, for each token: (L/2)·((8 + 4f)·H² + 4·S·H) for dense layers, (L/2)·((8 + 4·f·k)·H²
    + 4·S·H) for mixtures, 2·H·V for the output layer. The gate (2·H·E, under 0.1 %) is left out,
    and so is remat. One 380M step of 1024 sequences needs 1,065.0 TFLOP.
    """
    h, s, f = model.hidden_size, model.sequence_length, model.ffn_multiplier
    dense = (8 + 4 * f) * h * h + 4 * s * h
    mixture = (8 + 4 * f * model.top_k) * h * h + 4 * s * h
    token = 3 * ((model.num_layers // 2) * (dense + mixture) + 2 * h * model.vocab_size)
    return global_batch_size * s * token


# Name -> operations of one step of a case, over all its processes.
FORMULAS: dict[str, Callable[[Case], int]] = {
    "artifact": lambda case: artifact_flop(
        case.model,
        case.global_batch_size,
        case.micro_batch_size * case.model.sequence_length,
        case.remat,
    ),
    "useful": lambda case: useful_flop(case.model, case.global_batch_size),
}


def tflops(case: Case, seconds: float) -> dict[str, float]:
    """TFLOP a second and device of a step that takes ``seconds``, by each formula's name."""
    devices = case.parallel.processes
    return {name: flop(case) / seconds / devices / TERA for name, flop in FORMULAS.items()}
