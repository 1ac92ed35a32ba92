"""The router: one logit an expert for each token.

Shape suffixes: see the head of the package.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_JITTER = 1e-2  # DeepSpeed's: inputs of the router times a uniform draw from 0.99 to 1.01
_HAS_OUT_DTYPE = "out_dtype" in (torch.mm.__doc__ or "")  # torch 2.8, CUDA alone


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """left right with the sums, and the result, in fp32."""
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float())


class MixedProduct(torch.autograd.Function):
    """x W^T of 16-bit operands with the sums, and the result, in fp32.

    The result is that of casting both operands to fp32, without the two copies. In the backward
    pass the logits' gradient is rounded to 16 bit, as in every other product, but first divided by
    its largest element: the balance loss's gradient alone is below the range of fp16.
    """

    @staticmethod
    def forward(ctx: Any, x_NM: Tensor, weight_EM: Tensor) -> Tensor:
        ctx.save_for_backward(x_NM, weight_EM)
        return _wide_product(x_NM, weight_EM.t())

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, Tensor]:
        x_NM, weight_EM = ctx.saved_tensors
        unit = grad_NE.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
        low_NE = (grad_NE / unit).to(x_NM.dtype)
        dx_NM = _wide_product(low_NE, weight_EM) * unit
        dw_EM = _wide_product(low_NE.t(), x_NM) * unit
        return dx_NM.to(x_NM.dtype), dw_EM.to(weight_EM.dtype)


class Router(nn.Module):
    """The router's linear map, [N, M] to [N, E] logits, in fp32 (fp64 for fp64 input)."""

    def __init__(self, hidden_size: int, num_experts: int, jitter: bool) -> None:
        super().__init__()
        self.jitter = jitter
        self.wg = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, x_NM: Tensor) -> Tensor:
        """See the class. The weight is cast, never replaced, since ZeRO refers to the parameter."""
        exact = torch.promote_types(x_NM.dtype, torch.float32)
        jitter = self.jitter and self.training
        mixed = _HAS_OUT_DTYPE and x_NM.is_cuda and not torch.version.hip
        if mixed and x_NM.dtype == self.wg.weight.dtype != exact and not jitter:
            return MixedProduct.apply(x_NM, self.wg.weight)
        x_NM = x_NM.to(exact)
        if jitter:
            x_NM = x_NM * (1 - _JITTER + 2 * _JITTER * torch.rand_like(x_NM))
        return F.linear(x_NM, self.wg.weight.to(exact))
