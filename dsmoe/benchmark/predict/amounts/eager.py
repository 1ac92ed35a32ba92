"""Layers operation by operation, as torch runs them without a compiler.

Every elementwise operation is a pass of its own. The counts follow the code that runs: megatron
attention and DeepSpeed's own layer (the published method), fused attention and dispatch by index.
"""

from __future__ import annotations

from typing import Tuple

from dsmoe.benchmark.predict.amounts.work import ModelPass, Sizes, Work

Works = Tuple[Work, ...]


def _pass(kernel: str, elements: float, moved: float, launches: int = 1) -> Work:
    """An elementwise operation on ``elements`` that moves ``moved`` bytes an element."""
    return Work(
        "elementwise", bytes=elements * moved, launches=launches, kernel=kernel, elements=elements
    )


def _linear(rows: float, width: float, out: float) -> tuple[Work, Work]:
    """Forward; and both gradients with the bias's."""
    flop = 2.0 * rows * width * out
    return Work("products", flop=flop, launches=1), Work("products", flop=2 * flop, launches=2)


def attention(s: Sizes, kind: str) -> tuple[Works, Works]:
    """The layer's first half: norm, attention by ``kind`` (fused, math, megatron), residual."""
    hidden = float(s.T * s.H)
    qkv, qkv_back = _linear(s.T, s.H, 3 * s.H)
    out, out_back = _linear(s.T, s.H, s.H)
    forward = [_pass("layer-norm", hidden, 2 * s.e), qkv, out, _pass("add", hidden, 3 * s.e)]
    backward = [
        qkv_back,
        out_back,
        _pass("layer-norm-backward", hidden, 3 * s.e, 2),
        _pass("sum-rows", 4 * hidden, s.e, 2),  # the biases' gradients
        _pass("add", hidden, 3 * s.e),  # the gradients of norm and residual
        _pass("add", 3 * hidden, 4 * s.e, 2),  # the gradients of q, k and v, stacked
    ]
    if s.dropout:
        forward.append(_pass("dropout", hidden, 2 * s.e + 1))
        backward.append(_pass("dropout-backward", hidden, 2 * s.e + 1))
    written = _written_out(s, kind) if kind != "fused" else _fused(s)
    return (*forward, *written[0]), (*backward, *written[1])


def _fused(s: Sizes) -> tuple[Works, Works]:
    flop = 2.0 * s.T * s.S * s.H
    return (Work("attention", flop=flop, slower=s.slow_attention, launches=3),), (
        Work("attention", flop=2.5 * flop, slower=s.slow_attention, launches=4),
    )


def _written_out(s: Sizes, kind: str) -> tuple[Works, Works]:
    """Scores, scale, mask (a copy and a fill), softmax, dropout, weighted values."""
    scores = float(s.T * s.S * s.N)
    hidden = float(s.T * s.H)
    wide = 4 if kind == "math" else s.e  # the softmax's precision
    both = Work("products", flop=4.0 * s.T * s.S * s.H, bytes=2 * s.scores, launches=2)
    forward = [
        _pass("add", 4 * hidden, 2 * s.e, 4),  # q, k and v made contiguous, the result too
        both,
        _pass("add", scores, 2 * s.e),
        _pass("masked-fill", scores, 4 * s.e, 2),
        _pass("softmax", scores, s.e + wide),
    ]
    backward = [
        both.times(2),
        _pass("softmax-backward", scores, 2 * wide + s.e),
        _pass("masked-fill", scores, 4 * s.e, 2),
        _pass("add", scores, 2 * s.e),
        _pass("add", 4 * hidden, 2 * s.e, 4),
    ]
    if kind == "math" and s.e < 4:
        forward.append(_pass("cast-fp32", scores, 6))
        backward.append(_pass("cast-fp32", scores, 6))
    if s.dropout:
        forward.append(_pass("dropout-scores", scores, 2 * s.e + 1))
        backward.append(_pass("dropout-scores-backward", scores, 2 * s.e + 1))
    return tuple(forward), tuple(backward)


def feed_forward(s: Sizes, rows: float, parts: int = 1) -> tuple[Works, Works]:
    """Two linear maps with GELU between, on ``rows`` rows, in ``parts`` calls."""
    first, first_back = _linear(rows, s.H, s.F)
    second, second_back = _linear(rows, s.F, s.H)
    wide = rows * s.F
    forward = (first, second, _pass("gelu", wide, 2 * s.e, parts))
    backward = (
        first_back,
        second_back,
        _pass("gelu-backward", wide, 3 * s.e, parts),
        _pass("sum-rows", wide + rows * s.H, s.e, 2 * parts),
    )
    return forward, backward


def dense(s: Sizes, kind: str) -> ModelPass:
    """Attention and a dense feed-forward layer."""
    return _layer(s, kind, feed_forward(s, s.T))


def _layer(s: Sizes, kind: str, half: tuple[Works, Works]) -> ModelPass:
    """Attention, then the second norm, ``half`` and the residual."""
    hidden = float(s.T * s.H)
    first, first_back = attention(s, kind)
    norm = [_pass("layer-norm", hidden, 2 * s.e), _pass("add", hidden, 3 * s.e)]
    norm_back = [
        _pass("layer-norm-backward", hidden, 3 * s.e, 2),
        _pass("add", hidden, 3 * s.e),
    ]
    if s.dropout:
        norm.append(_pass("dropout", hidden, 2 * s.e + 1))
        norm_back.append(_pass("dropout-backward", hidden, 2 * s.e + 1))
    forward = (*first, *norm, *half[0])
    return ModelPass(forward, (*half[1], *norm_back, *first_back), forward)


def mixture(s: Sizes, kind: str, implementation: str, local_experts: int) -> ModelPass:
    """Attention, router, dispatch, experts, combine, by ``implementation``."""
    half = _index(s) if implementation == "index" else _one_hot(s, local_experts)
    return _layer(s, kind, half)


def _router(s: Sizes) -> tuple[Work, Work]:
    flop = 2.0 * s.T * s.H * s.E
    cast = s.T * s.H * (s.e + 4.0) if s.e < 4 else 0.0
    return (
        Work("products", flop=flop, bytes=cast, launches=4),
        Work("products", flop=2 * flop, bytes=cast, launches=5),
    )


def _index(s: Sizes) -> tuple[Works, Works]:
    """Dispatch and combine by gathers, all experts of the process in one batched product."""
    rows = float(s.R * s.H)
    router, router_back = _router(s)
    forward, backward = feed_forward(s, s.R)
    chosen = float(s.T * s.E)
    return (
        router,
        _pass("add", chosen, 160, 60),  # softmax, choices, slots, weights, losses: small passes
        _pass("gather-rows", rows, 2 * s.e),
        _pass("masked-fill", rows, 2 * s.e),
        *forward,
        _pass("add", s.R * s.F + rows, 2 * s.e, 2),  # the biases, apart from the products
        _pass("gather-rows", rows, 2 * s.e),
        _pass("add", rows, 3 * s.e, 4),  # weighted, added up
    ), (
        _pass("gather-rows", rows, 2 * s.e),
        _pass("add", rows, 6 * s.e, 6),
        *backward,
        _pass("gather-rows", rows, 2 * s.e),
        _pass("add", rows, 2 * s.e, 3),
        _pass("add", chosen, 80, 40),
        router_back,
    )


def _one_hot(s: Sizes, local_experts: int) -> tuple[Works, Works]:
    """DeepSpeed's own layer (sharded_moe.py, top2gating): fp32 tensors of [T, E, C] elements.

    Forward, bytes an element of [T, E, C]: two outer products written (8), their sum (12), the mask
    (5), its cast (3), two readings by products (4), the weights' cast (6). Backward: the gradient
    of the weights written and read (6), its cast (6), read by two products of the gates (8).
    """
    cube = float(s.T * s.E * s.C)
    places = float(s.T * s.C)
    chosen = float(s.T * s.E)
    product = 2.0 * s.T * s.E * s.C * s.H
    router, router_back = _router(s)
    forward, backward = feed_forward(s, s.R, local_experts)
    moved = float(s.R * s.H * s.e)
    return (
        router,
        _pass("", chosen, 200, 55),
        Work("elementwise", rows=2.0 * s.T, launches=2),
        # two one-hot tensors of places, in 64 bit, then in 32
        _pass("", 2 * places, 20, 6),
        _pass("", cube, 8 + 12 + 5 + 3 + 6, 6),
        Work("products", flop=2 * product, bytes=cube * 4, launches=2),
        *forward,
        Work("elementwise", bytes=4 * moved, launches=2 * local_experts),
    ), (
        Work("products", flop=3 * product, bytes=cube * 6, launches=3),
        _pass("", cube, 6 + 8, 3),
        *backward,
        Work("elementwise", bytes=4 * moved, launches=2 * local_experts),
        _pass("", chosen, 80, 25),
        router_back,
    )


def loss(s: Sizes) -> Works:
    """Output layer and cross-entropy in fp32, forward and backward."""
    logits = float(s.T * s.V)
    cast = 12 if s.e < 4 else 0
    return (
        Work("products", flop=6.0 * s.T * s.H * s.V, bytes=3 * logits * s.e, launches=3),
        Work(
            "loss", bytes=logits * (8 + cast), launches=4, kernel="cross-entropy", elements=logits
        ),
        Work(
            "loss",
            bytes=logits * 16,
            launches=3,
            kernel="cross-entropy-backward",
            elements=logits,
        ),
    )
