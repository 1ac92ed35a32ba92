"""Layers that torch.compile has fused: a pass over memory holds all that is elementwise.

The passes are counted in hidden states (T H e bytes), each read or written once; products read and
write theirs at the products' rate.
"""

from __future__ import annotations

from dsmoe.benchmark.predict.amounts.work import ModelPass, Sizes, Work

#: GELU in the products' epilogues: passes over the feed-forward width that a product with it takes
#: longer. Alone it is two passes forward and three backward. docs/lab/performance.md, cuBLASLt, one
#: MoE layer: 2.50 ms with GELU, 1.76 without, 1.14 for GELU alone; backward 3.08, 1.94 and 2.46.
GELU_FORWARD, GELU_BACKWARD = 2 * (2.50 - 1.76) / 1.14, 3 * (3.08 - 1.94) / 2.46
#: The same where the epilogues write FP8 twice, of the time that a pass over 131072 x 6144 takes in
#: 16 bit at the usual share of the memory's rate, 0.48 ms; and passes over the model width that
#: quantise what comes in and its gradient. docs/lab/fp8.md: products with epilogue 1.96 and 1.72
#: ms, without 0.85; 0.19 ms for a quantised [131072, 768].
FP8_FORWARD, FP8_BACKWARD, FP8_CAST = (1.96 - 0.85) / 0.48, (1.72 - 0.85) / 0.48, 3.0


def _epilogues(s: Sizes, wide: float, narrow: float) -> tuple[float, float]:
    """Bytes as long as the rest of a feed-forward layer takes beside its products, in both passes.

    ``wide``, ``narrow``: bytes of its hidden rows, and of what goes in.
    """
    if s.fp8:
        return FP8_FORWARD * wide + FP8_CAST * narrow, FP8_BACKWARD * wide + FP8_CAST * narrow
    return GELU_FORWARD * wide, GELU_BACKWARD * wide


def dense(s: Sizes) -> ModelPass:
    """Attention and a dense feed-forward layer."""
    attention_forward, attention_backward, attention_again = _attention(s)
    product = 2.0 * s.T * s.H * s.F
    gelu, derivative = _epilogues(s, float(s.T * s.F * s.e), s.hidden)
    forward = (
        *attention_forward,
        Work("elementwise", bytes=gelu),
        Work("products", flop=2 * product, slower=s.slow_product, launches=2, fp8=s.fp8),
        # residual
        Work("elementwise", bytes=3 * s.hidden, launches=1),
    )
    backward = (
        Work("products", flop=4 * product, slower=s.slow_product, launches=4, fp8=s.fp8),
        # GELU's derivative, the bias gradients, the norm's
        Work("elementwise", bytes=derivative + 6 * s.hidden, launches=4),
        *attention_backward,
    )
    # the last product's output is not needed
    again = (
        *attention_again,
        Work("products", flop=product, slower=s.slow_product, launches=1, fp8=s.fp8),
        Work("elementwise", bytes=gelu),
    )
    return ModelPass(forward, backward, again)


def mixture(s: Sizes, filled: float = 1.0) -> ModelPass:
    """Attention, router, dispatch, experts, combine; the experts compute a share ``filled`` of
    their slots."""
    attention_forward, attention_backward, attention_again = _attention(s)
    rows = float(s.R * s.H * s.e)
    product = 2.0 * s.R * s.H * s.F * filled
    router = 2.0 * s.T * s.H * s.E
    logits = 4.0 * s.T * s.E
    gelu, derivative = _epilogues(s, float(s.R * s.F * s.e) * filled, rows * filled)
    experts = (
        Work("products", flop=router, slower=s.slow_product, launches=1),
        Work("products", flop=2 * product, slower=s.slow_product, launches=2, fp8=s.fp8),
        # routing: a score of passes over [T, E] in 32 bit; dispatch; the experts' last bias
        Work("elementwise", bytes=gelu + 20 * logits + 4 * rows, launches=18),
    )
    forward = (
        *attention_forward,
        *experts,
        # combine and residual
        Work("elementwise", bytes=rows + 2 * s.hidden, launches=2),
    )
    backward = (
        Work("products", flop=2 * router, slower=s.slow_product, launches=3),
        Work("products", flop=4 * product, slower=s.slow_product, launches=4, fp8=s.fp8),
        # combine's gradients, the experts' bias gradients, dispatch's gradient, the norm's
        Work(
            "elementwise",
            bytes=derivative + 10 * logits + 6 * rows + 6 * s.hidden,
            launches=16,
        ),
        *attention_backward,
    )
    return ModelPass(forward, backward, (*attention_again, *experts))


def _attention(s: Sizes) -> tuple[tuple[Work, ...], tuple[Work, ...], tuple[Work, ...]]:
    product = 8.0 * s.T * s.H * s.H
    # scores and weighted values of the positions before: half of 4 T S H
    attention = 2.0 * s.T * s.S * s.H
    mask = 0.5 * s.hidden if s.dropout else 0.0
    forward = (
        # first norm; residual with the second norm
        Work("elementwise", bytes=6 * s.hidden + mask, launches=3),
        Work("products", flop=product, slower=s.slow_product, launches=2),
        Work("attention", flop=attention, slower=s.slow_attention, launches=1),
    )
    backward = (
        # two norms with what is added to the gradient, the bias gradients, a copy of q, k and v's
        Work("elementwise", bytes=16 * s.hidden + mask, launches=6),
        Work("products", flop=2 * product, slower=s.slow_product, launches=4),
        Work("attention", flop=2.5 * attention, slower=s.slow_attention, launches=3),
    )
    # fused attention's output is kept
    again = (
        Work("elementwise", bytes=6 * s.hidden + mask, launches=3),
        Work("products", flop=product, slower=s.slow_product, launches=2),
    )
    return forward, backward, again


def loss(s: Sizes) -> tuple[Work, ...]:
    """Output layer and cross-entropy, forward and backward together."""
    logits = float(s.T * s.V * s.e)
    return (
        Work("products", flop=6.0 * s.T * s.H * s.V, slower=s.slow_product, launches=3),
        Work("loss", bytes=2 * logits + 6 * s.hidden, launches=6),
    )
