"""Comparison of a library's first results with torch's operations.

A kernel that some release of a library computes wrongly would train a wrong model in silence.
"""

from __future__ import annotations

import math
from typing import Callable, Hashable

import torch
from torch import Tensor

CHECKED_ROWS = 256
# Relative, of norms; bf16 rounds by 2^-9.
_TOLERANCE = 2e-2
# Kind -> checks still to do; each waits for the device, so there are not many.
_CHECKS = 8
LEFT: dict[Hashable, int] = {}


def due(kind: Hashable) -> bool:
    """Whether a result of this kind is still to be compared, and can be now."""
    return LEFT.get(kind, _CHECKS) > 0 and not torch.cuda.is_current_stream_capturing()


def check(
    library: str,
    kind: Hashable,
    dtype: torch.dtype,
    found: Callable[[], tuple[Tensor, ...]],
    formula: Callable[[], tuple[Tensor, ...]],
) -> None:
    """Compare a part of the results of a kind, in its first calls until one says something.

    Args:
        library: for the message.
        kind: what the library chooses a kernel by.
        dtype: that of the results.
        found, formula: the part of its results, and the same by torch's operations in fp32.

    Raises:
        RuntimeError: where they are further apart than rounding explains. What the formula has no
            finite value for, or nothing but zeros, says nothing.
    """
    if not due(kind):
        return
    LEFT[kind] = LEFT.get(kind, _CHECKS) - 1
    for result, exact in zip(found(), formula()):
        # what the dtype cannot hold is infinite: a step to be skipped, no wrong kernel
        right = exact.to(dtype).float()
        error, size = (result.float() - right).norm().item(), right.norm().item()
        # gradients in fp16 may lie below its smallest number, and are rounded to it or to 0
        info = torch.finfo(dtype)
        smallest = info.tiny * info.eps * math.sqrt(right.numel())
        if math.isfinite(size) and not error <= _TOLERANCE * size + smallest:
            raise RuntimeError(
                f"{library}'s result for {kind} is {error:.3g} away from torch's of norm "
                f"{size:.3g}; train with DSMOE_KERNELS=torch, and please report it"
            )
        if not math.isfinite(size) or size <= smallest:
            return
    LEFT[kind] = 0
