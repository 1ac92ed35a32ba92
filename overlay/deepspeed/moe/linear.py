"""x W^T + b for a compiled training pass, by the products of hopper_products.py where they serve.

cuBLAS's kernels for a sum over 768 take 3 to 20 % longer (docs/performance.md). The weight's
gradient, a sum over tokens, stays torch's: there cuBLAS is the faster one.

Shape suffixes: R rows, K width of the sum, N width of the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .gelu_product import HAS_OPERATORS, serves
from .kernel_check import check
from .kernels import kernels

_CHECKED_ROWS = 256


def fuses(x: Tensor) -> bool:
    """Whether :func:`linear` has products of its own for ``x``, in a region being compiled."""
    return serves(x) and kernels().hopper is not None


def _formula(x_RK: Tensor, w: Tensor, b_N: Tensor | None, transposed: bool) -> Tensor:
    y_RN = torch.mm(x_RK, w.t() if transposed else w)
    return y_RN if b_N is None else y_RN + b_N


def multiply(x_RK: Tensor, w: Tensor, b_N: Tensor | None, transposed: bool) -> Tensor:
    """x w + b, [R, N], now; ``w`` is [K, N], or [N, K] if ``transposed``."""
    hopper = kernels().hopper
    x_RK, w = x_RK.contiguous(), w.contiguous()
    others = (x_RK,) if b_N is None else (x_RK, b_N)
    if not (hopper and hopper.serves(w, *others)):
        return _formula(x_RK, w, b_N, transposed)
    y_RN = hopper.product(x_RK, w.t() if transposed else w, b_N)
    kind = ("product", *x_RK.shape, y_RN.shape[1], b_N is not None, transposed, x_RK.dtype)
    check(
        "quack",
        kind,
        x_RK.dtype,
        lambda: (y_RN[-_CHECKED_ROWS:],),
        lambda: (
            _formula(
                x_RK[-_CHECKED_ROWS:].float(),
                w.float(),
                None if b_N is None else b_N.float(),
                transposed,
            ),
        ),
    )
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
    """x w, [R, N], in a region being compiled; no gradient goes through it."""
    return _operator(x_RK, w_KN, None, False) if fuses(x_RK) else torch.mm(x_RK, w_KN)


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
    """x W^T + b by the operator, whoever computes it; [R, K] to [R, N]."""
    return _Linear.apply(x_RK, w_NK, b_N)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)``; [..., K] to [..., N]."""
    if not fuses(x):
        return layer(x)
    y_RN = own_linear(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias)
    return y_RN.reshape(*x.shape[:-1], -1)
