"""Comparison of a library's first results with torch's operations.

A kernel that some release of a library computes wrongly would train a wrong model, and nothing
else would show it.
"""

from __future__ import annotations

import math
from typing import Callable, Hashable

import torch
from torch import Tensor

CHECKED_ROWS = 256
# Relative, of norms; bf16 rounds by 2^-9.
_TOLERANCE = 2e-2
_CHECKS = 8  # at most so many for a kind: each waits for the device


class FirstResults:
    """Compares the results of each kind until one of them was conclusive.

    A kind is what the library chooses a kernel by.
    """

    def __init__(self) -> None:
        self._remaining: dict[Hashable, int] = {}

    def due(self, kind: Hashable) -> bool:
        """Whether a result of this kind is still to be compared, and can be now."""
        remaining = self._remaining.get(kind, _CHECKS)
        return remaining > 0 and not torch.cuda.is_current_stream_capturing()

    def check(
        self,
        library: str,
        kind: Hashable,
        dtype: torch.dtype | None,
        found: Callable[[], tuple[Tensor, ...]],
        formula: Callable[[], tuple[Tensor, ...]],
    ) -> None:
        """Compare a part of the results of a kind, if that is due.

        Args:
            library: its name, for the message.
            kind: see the class.
            dtype: that of the results; None: each its own.
            found, formula: the part of its results, and the same by torch's operations in fp32.

        Raises:
            RuntimeError: where they are further apart than rounding explains. A formula with an
                infinite result, or with nothing but zeros, is not conclusive.
        """
        if not self.due(kind):
            return
        self._remaining[kind] = self._remaining.get(kind, _CHECKS) - 1
        for result, exact in zip(found(), formula()):
            # what the dtype cannot hold is infinite: the step is skipped, the kernel is not wrong
            kept = result.dtype if dtype is None else dtype
            right = exact.to(kept).float()
            error, size = (result.float() - right).norm().item(), right.norm().item()
            # gradients in fp16 may lie below its smallest number, and are rounded to it or to 0
            info = torch.finfo(kept)
            smallest = info.tiny * info.eps * math.sqrt(right.numel())
            if math.isfinite(size) and not error <= _TOLERANCE * size + smallest:
                raise RuntimeError(
                    f"{library}'s result for {kind} is {error:.3g} away from torch's of norm "
                    f"{size:.3g}; train with DSMOE_KERNELS=torch, and please report it"
                )
            if not math.isfinite(size) or size <= smallest:
                return
        self._remaining[kind] = 0
