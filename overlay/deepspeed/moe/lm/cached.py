"""Next-token logits with a cache of keys and values: a new token costs one position.

Experts take every token that chooses them: with a capacity, what a token gets depends on the
tokens after it, so that no cache can be right.

Shape suffixes: B sequences, T new positions, P positions so far, M model width, N heads, D width
of a head, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValueCache:
    """Keys and values [B, N, sequence_length, D] by layer; ``length`` positions are filled."""

    def __init__(self, lm: Any, batch: int) -> None:
        config, weight = lm.config, lm.embedding.weight
        heads = config.num_heads
        shape = (batch, heads, config.sequence_length, config.hidden_size // heads)
        self.length = 0
        self.layers = [
            (weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(config.num_layers)
        ]


@contextlib.contextmanager
def every_choice_kept(model: nn.Module) -> Iterator[None]:
    """Let no expert drop a token inside the block."""
    changed = [m for m in model.modules() if getattr(m, "drop_tokens", False)]
    try:
        for module in changed:
            module.drop_tokens = False
        yield
    finally:
        for module in changed:
            module.drop_tokens = True


def next_logits(lm: Any, tokens_BT: Tensor, cache: KeyValueCache) -> Tensor:
    """[B, V] after the last of ``tokens_BT``, which come after those in ``cache``; it grows by T.

    Call it in evaluation mode, without gradients.
    """
    first, last = cache.length, cache.length + tokens_BT.shape[1]
    x_BTM = lm.embedding(tokens_BT) + lm.positions.weight[first:last]
    for layer, store in zip(lm.layers, cache.layers):
        x_BTM = x_BTM + _attend(layer.attention, layer.attention_norm(x_BTM), store, first)
        out = layer.feed_forward(x_BTM)
        x_BTM = out[0] if layer.has_experts else out
    cache.length = last
    return F.linear(lm.final_norm(x_BTM[:, -1]), lm.embedding.weight)


def _attend(attention: Any, x_BTM: Tensor, store: tuple[Tensor, Tensor], first: int) -> Tensor:
    """Attention of the new positions to all so far; [B, T, M]. The softmax is in fp32."""
    batch, new, width = x_BTM.shape
    heads = attention.num_heads
    qkv_BT3ND = attention.qkv(x_BTM).view(batch, new, 3, heads, width // heads)
    q_BNTD, k_BNTD, v_BNTD = qkv_BT3ND.permute(2, 0, 3, 1, 4).unbind(0)
    last = first + new
    for kept, added in zip(store, (k_BNTD, v_BNTD)):
        kept[:, :, first:last] = added
    k_BNPD, v_BNPD = (kept[:, :, :last] for kept in store)
    scores_BNTP = torch.matmul(q_BNTD, k_BNPD.transpose(-1, -2)) / math.sqrt(q_BNTD.shape[-1])
    if new > 1:
        future_TP = torch.ones(new, last, dtype=torch.bool, device=x_BTM.device).triu(first + 1)
        scores_BNTP = scores_BNTP.masked_fill(future_TP, float("-inf"))
    exact = torch.promote_types(scores_BNTP.dtype, torch.float32)
    share_BNTP = torch.softmax(scores_BNTP, dim=-1, dtype=exact).to(v_BNPD.dtype)
    y_BTM = torch.matmul(share_BNTP, v_BNPD).transpose(1, 2).reshape(batch, new, width)
    return attention.out(y_BTM)
