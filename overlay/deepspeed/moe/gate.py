"""The router's linear map.

Shape suffixes: N tokens, M model width, E experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_JITTER = 1e-2  # DeepSpeed's: inputs of the gate times a uniform draw from 0.99 to 1.01


class Gate(nn.Module):
    """The router's linear map, [N, M] to [N, E] logits, in fp32 (fp64 for fp64 input)."""

    def __init__(self, hidden_size: int, num_experts: int, jitter: bool) -> None:
        super().__init__()
        self.jitter = jitter
        self.wg = nn.Linear(hidden_size, num_experts, bias=False)

    def forward(self, x_NM: Tensor) -> Tensor:
        """See the class. The weight is cast, never replaced: ZeRO keeps hold of the parameter."""
        exact = torch.promote_types(x_NM.dtype, torch.float32)
        x_NM = x_NM.to(exact)
        if self.jitter and self.training:
            x_NM = x_NM * (1 - _JITTER + 2 * _JITTER * torch.rand_like(x_NM))
        return F.linear(x_NM, self.wg.weight.to(exact))
