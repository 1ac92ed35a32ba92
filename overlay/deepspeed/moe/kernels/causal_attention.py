"""Causal attention with flash-attn's backward pass, for a compiled training pass.

The forward pass is cuDNN's fused attention, called through torch. The backward pass is the kernel
of hopper_attention.py, which writes the gradients of query, key and value into one tensor, as the
projection's backward pass reads them. Without that library both operators compute the formula.

Shape suffixes: B sequences, S positions, 3 for query, key and value, N heads, D width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .policy import HAS_OPERATORS, kernels

OPERATOR = "causal_attention"


def _scores(qkv_BS3ND: Tensor) -> tuple[Tensor, ...]:
    """q k^T / sqrt(D) [B, N, S, S] at least in fp32, -inf for later positions; and q, k, v."""
    exact = torch.promote_types(qkv_BS3ND.dtype, torch.float32)
    q_BNSD, k_BNSD, v_BNSD = qkv_BS3ND.to(exact).permute(2, 0, 3, 1, 4)
    scores_BNSS = torch.matmul(q_BNSD, k_BNSD.transpose(-1, -2)) / math.sqrt(q_BNSD.shape[-1])
    length = q_BNSD.shape[-2]
    future_SS = torch.ones(length, length, dtype=torch.bool, device=q_BNSD.device).triu(1)
    return scores_BNSS.masked_fill(future_SS, float("-inf")), q_BNSD, k_BNSD, v_BNSD


def _formula(qkv_BS3ND: Tensor) -> tuple[Tensor, Tensor]:
    scores_BNSS, _, _, v_BNSD = _scores(qkv_BS3ND)
    lse_BNS = torch.logsumexp(scores_BNSS, -1)
    share_BNSS = (scores_BNSS - lse_BNS[..., None]).exp()
    y_BSND = torch.matmul(share_BNSS, v_BNSD).transpose(1, 2)
    return y_BSND.to(qkv_BS3ND.dtype).contiguous(), lse_BNS


def _backward_formula(
    dy_BSND: Tensor, qkv_BS3ND: Tensor, y_BSND: Tensor, lse_BNS: Tensor
) -> Tensor:
    """Dao and others, FlashAttention (arXiv 2205.14135), appendix B.2."""
    scores_BNSS, q_BNSD, k_BNSD, v_BNSD = _scores(qkv_BS3ND)
    share_BNSS = (scores_BNSS - lse_BNS[..., None]).exp()
    dy_BNSD, y_BNSD = (t.transpose(1, 2).to(share_BNSS.dtype) for t in (dy_BSND, y_BSND))
    dshare_BNSS = torch.matmul(dy_BNSD, v_BNSD.transpose(-1, -2))
    along_BNS1 = (dy_BNSD * y_BNSD).sum(-1, keepdim=True)
    dscores_BNSS = share_BNSS * (dshare_BNSS - along_BNS1) / math.sqrt(q_BNSD.shape[-1])
    gradients = (
        torch.matmul(dscores_BNSS, k_BNSD),
        torch.matmul(dscores_BNSS.transpose(-1, -2), q_BNSD),
        torch.matmul(share_BNSS.transpose(-1, -2), dy_BNSD),
    )
    return torch.stack([g.transpose(1, 2) for g in gradients], 2).to(qkv_BS3ND.dtype)


def _forward(qkv_BS3ND: Tensor) -> tuple[Tensor, Tensor]:
    attention = kernels().libraries().attention
    if attention is None or not attention.supports_heads(qkv_BS3ND):
        return _formula(qkv_BS3ND)
    q_BNSD, k_BNSD, v_BNSD = qkv_BS3ND.permute(2, 0, 3, 1, 4)
    y_BNSD, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q_BNSD, k_BNSD, v_BNSD, None, True, 0.0, True
    )
    return y_BNSD.transpose(1, 2).contiguous(), lse.reshape(q_BNSD.shape[:3]).contiguous()


def _backward(dy_BSND: Tensor, qkv_BS3ND: Tensor, y_BSND: Tensor, lse_BNS: Tensor) -> Tensor:
    attention = kernels().libraries().attention
    if attention is None or not attention.supports_heads(qkv_BS3ND):
        return _backward_formula(dy_BSND, qkv_BS3ND, y_BSND, lse_BNS)
    dy_BSND = dy_BSND.contiguous()
    dqkv_BS3ND = attention.backward(dy_BSND, qkv_BS3ND, y_BSND, lse_BNS)
    kernels().first_results.check(
        "flash-attn",
        ("attention'", *qkv_BS3ND.shape, qkv_BS3ND.dtype),
        qkv_BS3ND.dtype,
        lambda: dqkv_BS3ND[-1:, :, :, -1:].unbind(2),
        lambda: _backward_formula(
            dy_BSND[-1:, :, -1:],
            qkv_BS3ND[-1:, :, :, -1:].float(),
            y_BSND[-1:, :, -1:],
            lse_BNS[-1:, -1:],
        ).unbind(2),
    )
    return dqkv_BS3ND


if HAS_OPERATORS:
    _operator = torch.library.custom_op(
        f"dsmoe::{OPERATOR}",
        _forward,
        mutates_args=(),
        schema="(Tensor qkv) -> (Tensor, Tensor)",
    )
    _backward_operator = torch.library.custom_op(
        f"dsmoe::{OPERATOR}_backward",
        _backward,
        mutates_args=(),
        schema="(Tensor dy, Tensor qkv, Tensor y, Tensor lse) -> Tensor",
    )

    @_operator.register_fake
    def _(qkv: Any) -> Any:
        batch, length, _, heads, width = qkv.shape
        exact = torch.promote_types(qkv.dtype, torch.float32)
        y = qkv.new_empty(batch, length, heads, width)
        return y, qkv.new_empty(batch, heads, length, dtype=exact)

    @_backward_operator.register_fake
    def _(dy: Any, qkv: Any, y: Any, lse: Any) -> Any:
        return qkv.new_empty(qkv.shape)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_BS3ND: Tensor) -> Tensor:
        y_BSND, lse_BNS = _operator(qkv_BS3ND)
        ctx.save_for_backward(qkv_BS3ND, y_BSND, lse_BNS)
        return y_BSND

    @staticmethod
    def backward(ctx: Any, dy_BSND: Tensor) -> Tensor:
        return _backward_operator(dy_BSND, *ctx.saved_tensors)


def causal_attention(qkv_BS3ND: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over each position and those before it.

    [B, S, 3, N, D] to [B, S, N, D].

    Raises:
        RuntimeError: in the backward pass, if the library's first result is wrong.
    """
    return _CausalAttention.apply(qkv_BS3ND)
