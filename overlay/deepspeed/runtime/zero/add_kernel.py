"""sum += factor * part for two dtypes, in Triton; imported only where there is a CUDA device."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@triton.jit
def _add(place, part, factor, numel, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    value = tl.load(part + at, inside, 0.0).to(tl.float32)
    tl.store(place + at, tl.load(place + at, inside, 0.0) + factor * value, inside)


def add_(place: Tensor, part: Tensor, factor: float) -> None:
    """place += factor * part; both contiguous and of equal size, ``place`` in fp32."""
    numel = place.numel()
    _add[(triton.cdiv(numel, _BLOCK),)](place, part, factor, numel, BLOCK=_BLOCK, num_warps=8)
