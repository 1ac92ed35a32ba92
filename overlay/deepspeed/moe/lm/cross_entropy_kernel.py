"""Cross-entropy and its gradient by logits, in one Triton kernel and in place.

Imported only where Triton and a GPU are.

Shape suffixes: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 8192, 16  # the fastest of eight tried on an H100, at V = 32000


@triton.jit
def _row(logits, labels, losses, vocabulary, scale, BLOCK: tl.constexpr):
    """One token: the maximum and the sum of exponentials, then the gradient over the logits."""
    token = tl.program_id(0).to(tl.int64)
    row = logits + token * vocabulary
    label = tl.load(labels + token)
    counts = label != -100
    known = (label >= 0) & (label < vocabulary)
    # a label that is none makes the loss NaN
    wanted = tl.load(row + label, mask=known, other=float("nan")).to(tl.float32)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, vocabulary, BLOCK):
        places = first + tl.arange(0, BLOCK)
        x = tl.load(row + places, mask=places < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        # where nothing finite was seen yet, the sum is 0 and stays so
        kept = tl.where(top == higher, 1.0, tl.exp(top - higher))
        total = total * kept + tl.where(x == float("-inf"), 0.0, tl.exp(x - higher))
        top = higher
    highest = tl.max(top, 0)
    total_all = tl.sum(total * tl.where(top == float("-inf"), 0.0, tl.exp(top - highest)), 0)
    loss = highest + tl.log(total_all) - wanted
    tl.store(losses + token, tl.where(counts, loss, 0.0))
    share = tl.where(counts, scale, 0.0)
    for first in range(0, vocabulary, BLOCK):
        places = first + tl.arange(0, BLOCK)
        inside = places < vocabulary
        x = tl.load(row + places, mask=inside, other=float("-inf")).to(tl.float32)
        gradient = tl.exp(x - highest) / total_all - tl.where(places == label, 1.0, 0.0)
        gradient = tl.where(counts, gradient, 0.0) * share
        tl.store(row + places, gradient.to(logits.dtype.element_ty), mask=inside)


def cross_entropy_(logits_NV: Tensor, labels_N: Tensor, scale: float) -> Tensor:
    """Losses [N] in fp32; ``logits_NV`` becomes ``scale`` times their gradient by the logits.

    Rows whose label is -100 count 0 in both; another label that is no class gives NaN.
    """
    tokens, vocabulary = logits_NV.shape
    losses_N = logits_NV.new_empty(tokens, dtype=torch.float32)
    if tokens:
        options = {"BLOCK": _BLOCK, "num_warps": _WARPS}
        _row[(tokens,)](logits_NV, labels_N, losses_N, vocabulary, scale, **options)
    return losses_N
