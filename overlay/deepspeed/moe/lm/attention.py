"""Causal self-attention, by a fused kernel or written out.

Shape suffixes: B sequences, S positions, M model width, N heads, D = M / N width of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from deepspeed.moe.kernels.causal_attention import causal_attention
from deepspeed.moe.kernels.linear import linear
from deepspeed.moe.kernels.policy import kernels
from torch import Tensor, nn

HAS_FUSED = hasattr(F, "scaled_dot_product_attention")  # torch 2.0


def math_attention(q_BNSD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, dropout: float) -> Tensor:
    """Causal attention written out, with the softmax in fp32; returns [B, N, S, D]."""
    length = q_BNSD.shape[-2]
    scores_BNSS = torch.matmul(q_BNSD, k_BNSD.transpose(-1, -2)) / math.sqrt(q_BNSD.shape[-1])
    future_SS = torch.ones(length, length, dtype=torch.bool, device=q_BNSD.device).triu(1)
    scores_BNSS = scores_BNSS.masked_fill(future_SS, float("-inf"))
    exact = torch.promote_types(scores_BNSS.dtype, torch.float32)
    share_BNSS = torch.softmax(scores_BNSS, dim=-1, dtype=exact).to(v_BNSD.dtype)
    return torch.matmul(F.dropout(share_BNSS, dropout, training=dropout > 0), v_BNSD)


def megatron_attention(q_BNSD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor, dropout: float) -> Tensor:
    """The same as Megatron-LM v1.1.5 has it without its fused kernels, which the Alpa artifact left
    out: scores, mask (-10000) and softmax in the precision of the input. Returns [B, N, S, D]."""
    length = q_BNSD.shape[-2]
    scores_BNSS = torch.matmul(q_BNSD, k_BNSD.transpose(-1, -2)) / math.sqrt(q_BNSD.shape[-1])
    future_SS = torch.ones(length, length, dtype=torch.bool, device=q_BNSD.device).triu(1)
    share_BNSS = torch.softmax(scores_BNSS.masked_fill(future_SS, -10000.0), dim=-1)
    return torch.matmul(F.dropout(share_BNSS, dropout, training=dropout > 0), v_BNSD)


WRITTEN_OUT = {"math": math_attention, "megatron": megatron_attention}


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and those before it.

    Args:
        hidden_size: model width M.
        num_heads: heads N; M is a multiple of N.
        dropout: probability, applied to the attention weights in training.
        attention: "fused", "math" or "megatron"; "fused" falls back to "math" where torch has no
            fused one.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, attention: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.fused = attention == "fused" and HAS_FUSED
        self.written_out = WRITTEN_OUT.get(attention, math_attention)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BSM: Tensor) -> Tensor:
        """Attend within each sequence; [B, S, M] to [B, S, M]."""
        batch, length, width = x_BSM.shape
        heads = self.num_heads
        qkv = linear(self.qkv, x_BSM)
        qkv_BS3ND = qkv.view(batch, length, 3, heads, width // heads)
        dropout = self.dropout if self.training else 0.0
        if self.fused and not dropout and kernels().fuses_attention(qkv_BS3ND):
            y_BSND = causal_attention(qkv_BS3ND)
        else:
            q_BNSD, k_BNSD, v_BNSD = qkv_BS3ND.permute(2, 0, 3, 1, 4).unbind(0)
            attend = kernels().attend if self.fused else self.written_out
            y_BSND = attend(q_BNSD, k_BNSD, v_BNSD, dropout).transpose(1, 2)
        y_BSM = y_BSND.reshape(batch, length, width)
        return linear(self.out, y_BSM)
