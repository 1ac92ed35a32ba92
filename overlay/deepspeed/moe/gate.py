"""The router's linear map.

Shape suffixes: N tokens, M model width, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_JITTER = 1e-2  # DeepSpeed's: inputs of the gate times a uniform draw from 0.99 to 1.01
_HAS_OUT_DTYPE = "out_dtype" in (torch.mm.__doc__ or "")  # torch 2.8, CUDA alone


class _MixedProduct(torch.autograd.Function):
    """x W^T of 16-bit operands with the sums, and the result, in fp32.

    What is multiplied is what casting both to fp32 would multiply, without the two copies.
    Backwards the gradient of the logits is rounded to 16 bit, as that of every other product.
    """

    @staticmethod
    def forward(ctx: Any, x_NM: Tensor, weight_EM: Tensor) -> Tensor:
        ctx.save_for_backward(x_NM, weight_EM)
        return torch.mm(x_NM, weight_EM.t(), out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor, Tensor]:
        x_NM, weight_EM = ctx.saved_tensors
        grad_NE = grad_NE.to(x_NM.dtype)
        return torch.mm(grad_NE, weight_EM), torch.mm(grad_NE.t(), x_NM)


class Gate(nn.Module):
    """The router's linear map, [N, M] to [N, E] logits, in fp32 (fp64 for fp64 input)."""

    def __init__(self, hidden_size: int, num_experts: int, jitter: bool) -> None:
        super().__init__()
        self.jitter = jitter
        self.wg = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, x_NM: Tensor) -> Tensor:
        """See the class. The weight is cast, never replaced: ZeRO keeps hold of the parameter."""
        exact = torch.promote_types(x_NM.dtype, torch.float32)
        jitter = self.jitter and self.training
        if _HAS_OUT_DTYPE and x_NM.is_cuda and x_NM.dtype != exact and not jitter:
            return _MixedProduct.apply(x_NM, self.wg.weight)
        x_NM = x_NM.to(exact)
        if jitter:
            x_NM = x_NM * (1 - _JITTER + 2 * _JITTER * torch.rand_like(x_NM))
        return F.linear(x_NM, self.wg.weight.to(exact))
