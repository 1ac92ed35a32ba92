"""A tensor in FP8 with one scale, in torch operations that a compiler fuses.

Hopper multiplies FP8 only where the width of the sum is contiguous in both operands. A tensor is
an operand of products over its columns and of products over its rows, so it is kept twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

#: e4m3, for gradients too: scales are per tensor and exact, and its third bit of mantissa trains
#: better than e5m2's range. None before torch 2.1.
FORMAT: Any = getattr(torch, "float8_e4m3fn", None)
LARGEST = 448.0
#: Operands of an FP8 product need rows and columns in multiples of 16 bytes.
MULTIPLE = 16
#: Rounding to three bits of mantissa makes a norm at most 2^-4 larger; two of them, and room.
_MARGIN = 1.2


class Quantised(NamedTuple):
    """A tensor x [E, R, K] in FP8.

    Attributes:
        rows_ERK, columns_EKR: x times ``scale`` in e4m3, and transposed.
        scale: a power of two, fp32.
        norm: the largest norm of a row, [], fp32.
    """

    rows_ERK: Tensor
    columns_EKR: Tensor
    scale: Tensor
    norm: Tensor


def scale_for(bound: Tensor) -> Tensor:
    """The largest power of two with which ``bound`` stays in FP8; [] to [].

    A bound of 0 has the scale 1. For one that is not finite the scale is NaN, so that all that is
    computed with it is NaN too: no zero and no finite number can hide an overflow.
    """
    exponent = torch.floor(torch.log2(LARGEST / bound)).clamp(-126, 126)
    scale = torch.where(bound > 0, torch.exp2(exponent), torch.ones_like(bound))
    return torch.where(torch.isfinite(bound), scale, torch.full_like(bound, float("nan")))


def quantise(x_ERK: Tensor) -> Quantised:
    """``x`` in FP8 by the largest of its values."""
    exact = x_ERK.float()
    scale = scale_for(exact.abs().amax())
    norm = exact.square().sum(-1).amax().sqrt()
    small = (exact * scale).to(FORMAT)
    return Quantised(small.contiguous(), small.transpose(1, 2).contiguous(), scale, norm)


def bounded_scale(norm: Tensor, other: Tensor, more: Tensor | float = 0.0) -> Tensor:
    """A scale for a product, before it is computed.

    By Cauchy and Schwarz no element is larger than the product of the largest norms of a row of
    each operand, whatever the order of the sum.

    Args:
        norm, other: those norms, [].
        more: what is added to an element at most.
    """
    return scale_for(_MARGIN * (norm * other) + more)
