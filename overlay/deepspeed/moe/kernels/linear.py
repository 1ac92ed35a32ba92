"""x W^T + b for a compiled training pass, by hopper_products.py where that library is used.

cuBLAS takes 4 to 25 % longer for these products (docs/lab/performance.md). torch computes the
weight's gradient, a sum over tokens, for which cuBLAS is faster.

Shape suffixes: E products in a batch, R rows, K width of the sum, N width of the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .gelu_product import matrix
from .policy import HAS_OPERATORS, kernels
from .verify import CHECKED_ROWS


def _formula(x_ERK: Tensor, w_EKN: Tensor, b_EN: Tensor | None) -> Tensor:
    y_ERN = torch.bmm(x_ERK, w_EKN)
    return y_ERN if b_EN is None else y_ERN + b_EN[:, None]


def multiply_batch(
    x_ERK: Tensor, w: Tensor, b_EN: Tensor | None, y_ERN: Tensor, transposed: bool = False
) -> None:
    """Write x w + b to ``y_ERN``, outside of a graph; rows may be slices.

    Args:
        x_ERK: [E, R, K].
        w: [E, K, N], or [E, N, K] if ``transposed``.
        b_EN: [E, N] or None.
    """
    hopper, w = kernels().libraries().hopper, w.contiguous()
    w_EKN = matrix(w, transposed)
    others = (x_ERK, y_ERN) if b_EN is None else (x_ERK, y_ERN, b_EN)
    if not (hopper and hopper.supports_operands(w, *others)):
        y_ERN.copy_(_formula(x_ERK, w_EKN, b_EN))
        return
    hopper.product(x_ERK, w_EKN, b_EN, y_ERN)

    def right() -> tuple[Tensor]:
        b_1N = None if b_EN is None else b_EN[-1:].float()
        return (_formula(x_ERK[-1:, -CHECKED_ROWS:].float(), w_EKN[-1:].float(), b_1N),)

    kind = ("product", *x_ERK.shape, y_ERN.shape[2], b_EN is not None, transposed, x_ERK.dtype)
    checks = kernels().first_results
    checks.check("quack", kind, x_ERK.dtype, lambda: (y_ERN[-1:, -CHECKED_ROWS:],), right)


def multiply(x_RK: Tensor, w: Tensor, b_N: Tensor | None, transposed: bool) -> Tensor:
    """x w + b, [R, N], outside of a graph; ``w`` is [K, N], or [N, K] if ``transposed``."""
    hopper, x_RK, w = kernels().libraries().hopper, x_RK.contiguous(), w.contiguous()
    if not (hopper and hopper.supports_operands(w, x_RK)):
        w_KN = w.t() if transposed else w
        return torch.mm(x_RK, w_KN) if b_N is None else torch.addmm(b_N, x_RK, w_KN)
    y_RN = x_RK.new_empty(x_RK.shape[0], w.shape[0] if transposed else w.shape[1])
    b_1N = None if b_N is None else b_N[None]
    multiply_batch(x_RK[None], w[None], b_1N, y_RN[None], transposed)
    return y_RN


if HAS_OPERATORS:
    _operator = torch.library.custom_op(
        "dsmoe::product",
        multiply,
        mutates_args=(),
        schema="(Tensor x, Tensor w, Tensor? b, bool transposed) -> Tensor",
    )

    @_operator.register_fake
    def _(x: Any, w: Any, b: Any, transposed: bool) -> Any:
        return x.new_empty(x.shape[0], w.shape[0] if transposed else w.shape[1])


def product(x_RK: Tensor, w_KN: Tensor) -> Tensor:
    """x w, [R, N], in a backward pass: it has no gradient of its own."""
    if kernels().multiplies(x_RK):
        return _operator(x_RK, w_KN, None, False)
    return torch.mm(x_RK, w_KN)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RK: Tensor, w_NK: Tensor, b_N: Tensor) -> Tensor:
        ctx.save_for_backward(x_RK, w_NK)
        return _operator(x_RK, w_NK, b_N, True)

    @staticmethod
    def backward(ctx: Any, dy_RN: Tensor) -> tuple[Tensor, ...]:
        x_RK, w_NK = ctx.saved_tensors
        dx_RK = _operator(dy_RN, w_NK, None, False)
        return dx_RK, torch.mm(dy_RN.t(), x_RK), dy_RN.sum(0)


def own_linear(x_RK: Tensor, w_NK: Tensor, b_N: Tensor) -> Tensor:
    """x W^T + b by the operator, whichever library computes it; [R, K] to [R, N]."""
    return _Linear.apply(x_RK, w_NK, b_N)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)``; [..., K] to [..., N]."""
    if not kernels().multiplies(x):
        return layer(x)
    y_RN = own_linear(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias)
    return y_RN.reshape(*x.shape[:-1], -1)
