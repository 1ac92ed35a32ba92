"""Cross-entropy and its gradient by logits, in one Triton kernel and in place.

Imported only where Triton and a GPU are available.

Shape suffixes: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 8192, 16  # the fastest of nine tried on an H200, at V = 32000


@triton.jit
def _row(logits, labels, losses, vocabulary, scale, BLOCK: tl.constexpr):
    """One token: the maximum and the sum of exponentials, then the gradient over the logits.

    A block's own maximum comes first, so that an element has one exponential in each pass.
    """
    token = tl.program_id(0).to(tl.int64)
    row = logits + token * vocabulary
    label = tl.load(labels + token)
    counts = label != -100
    known = (label >= 0) & (label < vocabulary)
    # a label that is not a class makes the loss NaN
    wanted = tl.load(row + label, mask=known, other=float("nan")).to(tl.float32)
    highest = float("-inf")
    total = 0.0
    for first in range(0, vocabulary, BLOCK):
        places = first + tl.arange(0, BLOCK)
        x = tl.load(row + places, mask=places < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, 0))
        # until the first finite logit the sum stays 0
        level = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(highest - level) + tl.sum(tl.exp(x - level), 0)
        highest = higher
    tl.store(losses + token, tl.where(counts, highest + tl.log(total) - wanted, 0.0))
    share = tl.where(counts, scale, 0.0)
    for first in range(0, vocabulary, BLOCK):
        places = first + tl.arange(0, BLOCK)
        inside = places < vocabulary
        # this is the last read, and the result is not read soon: the L2 need not keep it
        x = tl.load(row + places, inside, float("-inf"), eviction_policy="evict_first")
        x = x.to(tl.float32)
        gradient = tl.where(counts, tl.exp(x - highest) * (share / total), 0.0)
        tl.store(
            row + places,
            gradient.to(logits.dtype.element_ty),
            inside,
            eviction_policy="evict_first",
        )
    tl.debug_barrier()  # another thread may have written the label's place: wait, then correct it
    own = share * (tl.exp(wanted - highest) / total - 1.0)
    tl.store(row + label, own.to(logits.dtype.element_ty), mask=known & counts)


def cross_entropy_(logits_NV: Tensor, labels_N: Tensor, scale: float) -> Tensor:
    """Losses [N] in fp32; ``logits_NV`` becomes ``scale`` times their gradient by the logits.

    Rows with label -100 have loss and gradient 0; any other label that is not a class gives NaN.
    """
    tokens, vocabulary = logits_NV.shape
    losses_N = logits_NV.new_empty(tokens, dtype=torch.float32)
    if tokens:
        options = {"BLOCK": _BLOCK, "num_warps": _WARPS}
        _row[(tokens,)](logits_NV, labels_N, losses_N, vocabulary, scale, **options)
    return losses_N
