"""gelu(x W1 + b1) W2 in FP8, and its gradients.

The narrow tensors (x, dy, the weights) are quantised by torch operations, which the compiler joins
with what wrote them where it can. The wide ones, of the hidden width, are written in FP8 by the
epilogues of the products that make them, at a scale from a bound (quantise.py): they are never
read for their maximum, and never written in 16 bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .operators import down, product, up
from .quantise import MULTIPLE, bounded_scale, quantise

_STEEPEST = 1.13  # GELU's derivative is at most 1.129


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ERM: Tensor, w1: Tensor, b1_EH: Tensor, w2: Tensor, transposed: bool
    ) -> Tensor:
        x = quantise(x_ERM)
        first = quantise(w1 if transposed else w1.transpose(1, 2))
        second = quantise(w2.transpose(1, 2) if transposed else w2)
        scale = bounded_scale(x.norm, first.norm, b1_EH.float().abs().amax())
        a_ERH, a_EHR, slope_ERH = up(
            x.rows_ERK, first.rows_ERK, b1_EH, 1 / (x.scale * first.scale), scale
        )
        ctx.save_for_backward(
            x.columns_EKR, x.scale, a_EHR, scale, slope_ERH,
            first.columns_EKR, first.scale, second.rows_ERK, second.scale, second.norm,
        )  # fmt: skip
        ctx.transposed = transposed
        return product(a_ERH, second.columns_EKR, 1 / (scale * second.scale), x_ERM.dtype)

    @staticmethod
    def backward(ctx: Any, dy_ERM: Tensor) -> tuple[Tensor | None, ...]:
        x_EMR, x_scale, a_EHR, a_scale, slope_ERH, w1_EMH, w1_scale, w2_EHM, w2_scale, w2_norm = (
            ctx.saved_tensors
        )
        dy = quantise(dy_ERM)
        scale = bounded_scale(dy.norm * _STEEPEST, w2_norm)
        dh_ERH, dh_EHR, db1_EH = down(
            dy.rows_ERK, w2_EHM, slope_ERH, 1 / (dy.scale * w2_scale), scale
        )
        dx_ERM = product(dh_ERH, w1_EMH, 1 / (scale * w1_scale), dy_ERM.dtype)
        # in the weights' own layouts, so that accumulating them reads and writes whole rows
        of_w1, of_w2 = (x_EMR, dh_EHR), (a_EHR, dy.columns_EKR)
        if ctx.transposed:
            of_w1, of_w2 = of_w1[::-1], of_w2[::-1]
        dw1 = product(*of_w1, 1 / (x_scale * scale), dy_ERM.dtype, long=True)
        dw2 = product(*of_w2, 1 / (a_scale * dy.scale), dy_ERM.dtype, long=True)
        return dx_ERM, dw1, db1_EH, dw2, None


def feed_forward(
    x_ERM: Tensor, w1: Tensor, b1_EH: Tensor, w2: Tensor, transposed: bool = False
) -> Tensor:
    """gelu(x W1 + b1) W2 for each of E, in GELU's tanh form; [E, R, M] to [E, R, M].

    Args:
        x_ERM: [E, R, M], bf16; on a CPU also fp32.
        w1, w2: [E, M, H] and [E, H, M]; if ``transposed`` [E, H, M] and [E, M, H].
        b1_EH: [E, H].
    """
    rows = x_ERM.shape[1]
    if rows == 0:
        return x_ERM * 0
    # sums over rows are in multiples of 16; rows of zeros add nothing
    padded = F.pad(x_ERM, (0, 0, 0, -rows % MULTIPLE))
    return _FeedForward.apply(padded, w1, b1_EH, w2, transposed)[:, :rows]
