"""Gradients between processes as blocks of 8-bit integers, with error feedback.

A block of 256 elements travels as 256 signed bytes and one fp32 scale, its largest magnitude over
127: 1.016 bytes an element. Every owner gets the piece of each process and adds them up in fp32
(exchanged_sums.py); its own is added exactly. What rounding takes from a message is added to the
next step's (error feedback; Seide et al. 2014, Karimireddy et al. 2019), so no part of a gradient
is lost for good.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .as_bytes import from_bytes, to_bytes

BLOCK = 256
_SCALE_BYTES = 4


def pack(values: Tensor) -> Tensor:
    """``values`` [n] in fp32 as uint8 [b * 260] with b = ceil(n / 256): integers, then scales.

    A block that holds infinity or NaN comes back as NaN.
    """
    blocks = -(-values.numel() // BLOCK)
    padded = values.new_zeros(blocks * BLOCK)
    padded[: values.numel()] = values
    rows = padded.view(blocks, BLOCK)
    scales = rows.abs().amax(1) / 127
    scales = torch.where(torch.isfinite(scales), scales, torch.full_like(scales, float("nan")))
    divisor = torch.where(scales > 0, scales, torch.ones_like(scales))
    whole = (rows / divisor.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([whole.view(torch.uint8).flatten(), to_bytes(scales)])


def unpack(message: Tensor, numel: int) -> Tensor:
    """The ``numel`` fp32 values of a message of :func:`pack`."""
    blocks = message.numel() // (BLOCK + _SCALE_BYTES)
    whole = message[: blocks * BLOCK].view(torch.int8).view(blocks, BLOCK)
    scales = from_bytes(message[blocks * BLOCK :].clone(), torch.float32)  # aligned
    return (whole.float() * scales.unsqueeze(1)).flatten()[:numel]


def packed_bytes(numel: int) -> int:
    return -(-numel // BLOCK) * (BLOCK + _SCALE_BYTES)


class Residual:
    """What earlier messages lost by rounding, for each element of a flat buffer, in fp32."""

    def __init__(self, like: Tensor) -> None:
        self.values = torch.zeros_like(like)

    def rescale(self, factor: float) -> None:
        """The loss scale changed by ``factor``; what an overflow left is dropped."""
        kept = torch.where(torch.isfinite(self.values), self.values, torch.zeros_like(self.values))
        self.values.copy_(kept * factor)
