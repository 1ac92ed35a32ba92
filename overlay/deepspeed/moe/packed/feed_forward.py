"""gelu(x W1 + b1) W2 + b2 of each expert on its packed rows, and the gradients.

Shape suffixes: see the head of the package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .operators import down, expert_rows, product, up, weight_gradient


class _PackedFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RM: Tensor,
        first_row_E1: Tensor,
        w1_EMH: Tensor,
        b1_EH: Tensor,
        w2_EHM: Tensor,
        b2_EM: Tensor,
    ) -> Tensor:
        a_RH, k_RH = up(x_RM, first_row_E1, w1_EMH, b1_EH)
        ctx.save_for_backward(x_RM, first_row_E1, w1_EMH, w2_EHM, a_RH, k_RH)
        return product(a_RH, first_row_E1, w2_EHM, b2_EM, False)

    @staticmethod
    def backward(ctx: Any, dy_RM: Tensor) -> tuple[Tensor | None, ...]:
        x_RM, first_row_E1, w1_EMH, w2_EHM, a_RH, k_RH = ctx.saved_tensors
        dy_RM = dy_RM.contiguous()
        dh_RH, db1_EH = down(dy_RM, first_row_E1, w2_EHM, k_RH)
        dx_RM = product(dh_RH, first_row_E1, w1_EMH, None, True)
        dw1_EMH = weight_gradient(x_RM, first_row_E1, dh_RH)
        dw2_EHM = weight_gradient(a_RH, first_row_E1, dy_RM)
        # dispatch.py makes the gradient of an empty row 0, so a product may sum all rows
        own_ER = expert_rows(first_row_E1, dy_RM.shape[0]).to(dy_RM.dtype)
        return dx_RM, None, dw1_EMH, db1_EH, dw2_EHM, torch.mm(own_ER, dy_RM)


def packed_feed_forward(
    x_RM: Tensor,
    first_row_E1: Tensor,
    w1_EMH: Tensor,
    b1_EH: Tensor,
    w2_EHM: Tensor,
    b2_EM: Tensor,
) -> Tensor:
    """Each expert on its rows, GELU in its tanh form; [R, M] to [R, M].

    Args:
        x_RM: [R, M].
        first_row_E1: int32, [E + 1]; expert e has rows ``first_row_E1[e]`` to
            ``first_row_E1[e + 1]``. Rows behind the last have no value in the result and in the
            gradient of ``x_RM``; their own gradient must be 0.
        w1_EMH, b1_EH, w2_EHM, b2_EM: the experts' weights.
    """
    return _PackedFeedForward.apply(x_RM, first_row_E1, w1_EMH, b1_EH, w2_EHM, b2_EM)
