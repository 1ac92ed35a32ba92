"""Weights of two runs, without what no loss depends on."""

from __future__ import annotations

import torch


def comparable(name: str, weight: torch.Tensor) -> torch.Tensor:
    """``weight`` without the keys' biases.

    Softmax does not see a key's bias, so its gradient is zero but for rounding, and optimizers
    that divide by the gradient's size turn that rounding into updates of full size.
    """
    if not name.endswith("qkv.bias"):
        return weight
    query, _, value = weight.chunk(3)
    return torch.cat([query, value])
