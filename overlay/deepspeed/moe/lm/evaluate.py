"""Perplexity of the model on held-out windows of tokens."""

from __future__ import annotations

import math
from typing import Iterable, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .modes import evaluating


class Evaluation(NamedTuple):
    """Result of :func:`evaluate`."""

    cross_entropy: float
    """Mean over all predicted tokens, in nats; without the routers' losses."""
    perplexity: float
    """exp(cross_entropy); infinity on overflow."""
    tokens: int
    """Predicted tokens; with ``all_processes`` of all of them."""


def evaluate(
    model: nn.Module, windows: Iterable[Tensor], all_processes: bool = False
) -> Evaluation:
    """Cross-entropy and perplexity over ``windows``, in evaluation mode.

    Args:
        model: a :class:`~deepspeed.moe.lm.model.MoELM`, or an engine around one; its experts have
            the capacity of ``eval_capacity_factor``, and routing is deterministic.
        windows: [B, S + 1] token numbers each, of any B and S; token i + 1 is predicted from those
            up to i. With expert parallelism all processes need equal shapes.
        all_processes: sum over the processes of ``torch.distributed``, each with its own windows.

    Raises:
        ValueError: if there is no token to predict.

    It waits for the device once, at the end.
    """
    lm = getattr(model, "module", model)
    tokens = 0
    total: Tensor | None = None
    with evaluating(model):
        for window in windows:
            count = window[:, 1:].numel()
            if not count:
                continue
            model(window[:, :-1], window[:, 1:])
            part = lm.last_stats.cross_entropy.to(torch.float64) * count
            total = part if total is None else total + part
            tokens += count
    if all_processes and dist.is_initialized() and dist.get_world_size() > 1:
        device = next(lm.parameters()).device
        sums = torch.tensor([0.0, tokens], dtype=torch.float64, device=device)
        if total is not None:
            sums[0] = total
        dist.all_reduce(sums)
        total, tokens = sums[0], int(sums[1].item())
    if not tokens:
        raise ValueError("windows hold 0 tokens to predict; expected [B, S + 1] with B and S >= 1")
    mean = float(total) / tokens
    return Evaluation(mean, _exp(mean), tokens)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
