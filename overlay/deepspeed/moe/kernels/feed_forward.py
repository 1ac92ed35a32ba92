"""gelu(x W1 + b1) W2 with GELU inside the products, for a compiled training pass.

torch.compile makes GELU a kernel that reads the result of the first product, and a second kernel in
the backward pass that computes it again. Here the first product writes GELU's result and its input,
and the product of the backward pass applies the derivative and sums the bias's gradient
(gelu_product.py).

Shape suffixes: E experts (1 for a dense layer), R rows, M model width, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .gelu_product import matrix, product_gelu, product_gelu_derivative


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ERM: Tensor, w1: Tensor, b1_EH: Tensor, w2: Tensor, transposed: bool
    ) -> Tensor:
        a_ERH, h_ERH = product_gelu(x_ERM, w1, b1_EH, transposed)
        ctx.save_for_backward(x_ERM, w1, w2, a_ERH, h_ERH)
        ctx.transposed = transposed
        return torch.bmm(a_ERH, matrix(w2, transposed))

    @staticmethod
    def backward(ctx: Any, dy_ERM: Tensor) -> tuple[Tensor | None, ...]:
        x_ERM, w1, w2, a_ERH, h_ERH = ctx.saved_tensors
        transposed = ctx.transposed
        dh_ERH, db_EH = product_gelu_derivative(dy_ERM, w2, h_ERH, transposed)
        dx_ERM = torch.bmm(dh_ERH, matrix(w1, not transposed))
        dw1 = _weight_gradient(x_ERM, dh_ERH, transposed)
        dw2 = _weight_gradient(a_ERH, dy_ERM, transposed)
        return dx_ERM, dw1, db_EH, dw2, None


def _weight_gradient(x: Tensor, dy: Tensor, transposed: bool) -> Tensor:
    """In the weight's own layout, so that accumulating it reads and writes whole rows."""
    if transposed:
        return torch.bmm(dy.transpose(1, 2), x)
    return torch.bmm(x.transpose(1, 2), dy)


def feed_forward(
    x_ERM: Tensor, w1: Tensor, b1_EH: Tensor, w2: Tensor, transposed: bool = False
) -> Tensor:
    """gelu(x W1 + b1) W2 for each of E, in GELU's tanh form; [E, R, M] to [E, R, M].

    Args:
        x_ERM: [E, R, M].
        w1, w2: [E, M, H] and [E, H, M]; if ``transposed`` [E, H, M] and [E, M, H].
        b1_EH: [E, H].
    """
    return _FeedForward.apply(x_ERM, w1, b1_EH, w2, transposed)
