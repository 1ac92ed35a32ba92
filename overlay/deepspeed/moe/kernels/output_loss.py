"""Output layer and cross-entropy together, for a compiled training pass.

The logits are the largest tensor of a step. torch.compile writes them, reads them for the softmax,
reads them again for the gradient, and writes that to a second tensor. Here the gradient replaces
the logits in the forward pass: only a factor is unknown then, and the backward pass applies it to
the two small results.

Shape suffixes: N tokens, M model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .linear import multiply, product
from .policy import HAS_OPERATORS

# The gradient by a logit is at most 1, and in 16 bit it is kept before it is divided by the number
# of tokens (after it, fp16 would lose most of it). The weights' gradient is a sum over tokens, so
# fp16 needs room above.
_SCALES = {torch.float16: 2.0**-4}


def _formula(logits_NV: Tensor, labels_N: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The results of cross_entropy.py, by torch's operations."""
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    shares_NV = torch.log_softmax(logits_NV.to(exact), -1)
    counts_N = labels_N != -100
    classes_N1 = labels_N.where(counts_N, torch.zeros_like(labels_N))[:, None]
    losses_N = -shares_NV.gather(1, classes_N1)[:, 0] * counts_N
    hit_NV = torch.zeros_like(shares_NV).scatter_(1, classes_N1, 1.0)
    gradient_NV = (shares_NV.exp() - hit_NV) * (scale * counts_N.to(exact)[:, None])
    return losses_N, gradient_NV.to(logits_NV.dtype)


def _losses(x_NM: Tensor, w_VM: Tensor, labels_N: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    logits_NV = multiply(x_NM, w_VM, None, transposed=True)
    if not x_NM.is_cuda:
        return _formula(logits_NV, labels_N, scale)
    from .cross_entropy import cross_entropy_

    return cross_entropy_(logits_NV, labels_N.contiguous(), scale), logits_NV


if HAS_OPERATORS:
    _operator = torch.library.custom_op(
        "dsmoe::output_losses",
        _losses,
        mutates_args=(),
        schema="(Tensor x, Tensor w, Tensor labels, float scale) -> (Tensor, Tensor)",
    )

    @_operator.register_fake
    def _(x: Any, w: Any, labels: Any, scale: float) -> Any:
        exact = torch.promote_types(x.dtype, torch.float32)
        return x.new_empty(x.shape[0], dtype=exact), x.new_empty(x.shape[0], w.shape[0])


class _OutputLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NM: Tensor, w_VM: Tensor, labels_N: Tensor, shares_N: Tensor) -> Tensor:
        ctx.scale = _SCALES.get(x_NM.dtype, 1.0)
        losses_N, gradient_NV = _operator(x_NM, w_VM, labels_N, ctx.scale)
        ctx.save_for_backward(x_NM, w_VM, gradient_NV, shares_N)
        return (losses_N * shares_N).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NM, w_VM, gradient_NV, shares_N = ctx.saved_tensors
        exact = shares_N.dtype
        # Shares are at most 1 and add up to 1; scaled up, so that 16 bit holds the small ones too.
        largest = shares_N.max()
        factor = grad.to(exact) / ctx.scale * largest
        share_N1 = torch.where(largest > 0, shares_N / largest, shares_N)[:, None]
        dx_NM = product(gradient_NV, w_VM).to(exact) * (factor * share_N1)
        weighted_NM = (x_NM.to(exact) * share_N1).to(x_NM.dtype)
        dw_VM = torch.mm(gradient_NV.t(), weighted_NM).to(exact) * factor
        return dx_NM.to(x_NM.dtype), dw_VM.to(w_VM.dtype), None, None


def output_loss(x_NM: Tensor, w_VM: Tensor, labels_N: Tensor, shares_N: Tensor) -> Tensor:
    """sum of shares * cross-entropy(x W^T, labels), a scalar in fp32 (fp64 for fp64).

    Args:
        x_NM: [N, M].
        w_VM: [V, M], ``nn.Linear``'s layout.
        labels_N: [N] classes; -100 is ignored.
        shares_N: [N] in the dtype of the result, at least 0; they get no gradient.
    """
    return _OutputLoss.apply(x_NM, w_VM, labels_N, shares_N)
