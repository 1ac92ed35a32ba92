"""GShard's Algorithm 1 (arXiv 2006.16668): experts, slots and weights of each token, as indices.

Every shape is known beforehand, so that nothing waits for the device.

A token with a logit that is NaN or infinite has weights of NaN, also where it found no slot, and
makes the balance loss NaN: the training loss shows the error.

Shape suffixes: see the head of the package.
Here T = K S.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 256  # running counts go by blocks of this many choices: shorter dependent scans


@dataclasses.dataclass(frozen=True)
class RoutingRule:
    """The named choices within Algorithm 1.

    Attributes:
        top_k: choices of a token, 1 or 2. With 1 the weight is the gate itself (Switch
            Transformer); renormalised it would always be 1 and the gate would get no gradient.
        second_expert_policy: "all": the second best expert, always tried; "random" (GShard): the
            second best, tried when twice its gate, renormalised over the two, exceeds a uniform
            draw; "sampling" (DeepSpeed): drawn among the others in proportion to their gates
            (Gumbel maximum), always tried.
        renormalize: the two weights add up to 1 over the choices that were "kept" (DeepSpeed),
            or over the two "chosen", before the capacity test (GShard).
        sample_first: with top_k 1, draw the expert in proportion to the gates (DeepSpeed's
            RSample) instead of taking the best.
    """

    top_k: int = 2
    second_expert_policy: str = "all"
    renormalize: str = "kept"
    sample_first: bool = False

    def noise(self, logits_GSE: Tensor) -> Tensor | None:
        """The draws that :func:`route` needs: uniform [G, S], Gumbel [G, S, E], or none."""
        if self.top_k == 1:
            return _gumbel(logits_GSE) if self.sample_first else None
        if self.second_expert_policy == "random":
            return torch.rand_like(logits_GSE[..., 0])
        return _gumbel(logits_GSE) if self.second_expert_policy == "sampling" else None


class Routing(NamedTuple):
    """Where every choice of every token goes."""

    expert_KGS: Tensor
    """Expert of each choice, int64."""
    slot_KGS: Tensor
    """Its slot among the expert's C in this group, int64; 0 where it is not kept."""
    kept_KGS: Tensor
    """Whether the choice was tried and found a slot, bool."""
    weight_KGS: Tensor
    """Weight of the expert's output in the token's; 0 where it is not kept (or NaN, see above)."""
    capacity: int
    num_experts: int
    aux_loss: Tensor
    """Balance loss, scaled so that a uniform router scores 1."""
    z_loss: Tensor
    """Mean square of the logits' log-sum-exp (ST-MoE, arXiv 2202.08906, equation 5)."""
    expert_load_E: Tensor
    """Tokens whose first choice each expert was, before the capacity test."""
    dropped_share: Tensor
    """Share of the choices tried that found their expert full."""
    taken_GE: Tensor
    """Slots of each expert that a group's choices take, int64, at most C."""


def expert_capacity(
    group_size: int, num_experts: int, top_k: int, factor: float, min_capacity: int
) -> int:
    """Slots of an expert in one group: ceil(k S / E * factor), at least ``min_capacity``.

    Never more than S, since a token chooses an expert once. The product is rounded down by 1e-6
    before the ceiling, so that 2 * 100 / 10 * 1.1 is 22 and not, for a rounding error, 23.
    """
    wanted = math.ceil(top_k * group_size * factor / num_experts - 1e-6)
    return min(max(wanted, min_capacity), group_size)


def route(
    logits_GSE: Tensor,
    capacity: int,
    rule: RoutingRule,
    used_GS: Tensor | None = None,
    noise: Tensor | None = None,
) -> Routing:
    """Algorithm 1: choose experts, assign slots in token order, compute weights.

    All second choices of a group come after all its first ones; a second choice that is not tried
    takes no slot. Of equal logits the lowest expert number wins, as in ``argmax``.

    Args:
        logits_GSE: fp32 or fp64.
        capacity: C, see :func:`expert_capacity`.
        rule: the named choices.
        used_GS: bool; a token that is not used takes no slot, has no weight and does not count in
            the losses and figures. None: all are used.
        noise: what ``rule.noise(logits)`` returns; by default new draws.

    The balance loss of a group is (1/E) sum_e (c_e / S)(m_e) E^2, with c_e the first choices and
    m_e the mean gate of expert e and S the group's used tokens; groups are weighted by their used
    tokens, which for full groups is the mean over groups.
    """
    noise = rule.noise(logits_GSE.detach()) if noise is None else noise
    gates_GSE = torch.softmax(logits_GSE, dim=-1)
    expert_KGS, tried_KGS = _choose(logits_GSE.detach(), gates_GSE.detach(), rule, noise)
    if used_GS is not None:
        tried_KGS = tried_KGS & used_GS.to(torch.bool)
    slot_KGS, first_GE, tried_GE = _assign_slots(expert_KGS, tried_KGS, logits_GSE.shape[-1])
    kept_KGS = tried_KGS & (slot_KGS < capacity)
    tried, kept = tried_KGS.sum(), kept_KGS.sum()
    aux_loss, z_loss = _losses(logits_GSE, gates_GSE, first_GE, used_GS)
    return Routing(
        expert_KGS=expert_KGS,
        slot_KGS=torch.where(kept_KGS, slot_KGS, torch.zeros_like(slot_KGS)),
        kept_KGS=kept_KGS,
        weight_KGS=_weights(gates_GSE, expert_KGS, kept_KGS, rule),
        capacity=capacity,
        num_experts=logits_GSE.shape[-1],
        aux_loss=aux_loss,
        z_loss=z_loss,
        expert_load_E=first_GE.sum(0),
        dropped_share=(tried - kept).to(logits_GSE.dtype) / tried.clamp(min=1),
        taken_GE=tried_GE.clamp(max=capacity),
    )


def _gumbel(logits: Tensor) -> Tensor:
    """Standard Gumbel noise; a uniform draw of exactly 0 would make it minus infinity."""
    uniform = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny)
    return -torch.log(-torch.log(uniform))


def _choose(
    logits_GSE: Tensor, gates_GSE: Tensor, rule: RoutingRule, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Experts of the choices, and whether each is tried: two [K, G, S]."""
    if rule.top_k == 1:
        scores_GSE = logits_GSE + noise if rule.sample_first else logits_GSE
        first_GS = scores_GSE.argmax(-1)
        return first_GS[None], torch.ones_like(first_GS, dtype=torch.bool)[None]
    first_GS = logits_GSE.argmax(-1)
    experts_E = torch.arange(logits_GSE.shape[-1], device=logits_GSE.device)
    is_first_GSE = first_GS[..., None] == experts_E
    sampled = rule.second_expert_policy == "sampling"
    scores_GSE = logits_GSE + noise if sampled else logits_GSE
    second_GS = scores_GSE.masked_fill(is_first_GSE, float("-inf")).argmax(-1)
    # where every other logit is minus infinity there is no second expert
    tried_GS = second_GS != first_GS
    if rule.second_expert_policy == "random":
        g1_GS = gates_GSE.gather(-1, first_GS[..., None])[..., 0]
        g2_GS = gates_GSE.gather(-1, second_GS[..., None])[..., 0]
        tried_GS = tried_GS & (2 * g2_GS > noise * (g1_GS + g2_GS))
    return (
        torch.stack([first_GS, second_GS]),
        torch.stack([torch.ones_like(tried_GS), tried_GS]),
    )


def _assign_slots(
    expert_KGS: Tensor, tried_KGS: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Earlier choices of the same expert in the group [K, G, S]; first and all choices of each
    [G, E].

    The slot of a choice that was not tried has no meaning.
    """
    choices, groups, size = expert_KGS.shape
    expert_GT = expert_KGS.permute(1, 0, 2).reshape(groups, choices * size)
    tried_GT = tried_KGS.permute(1, 0, 2).reshape(groups, choices * size)
    experts_E = torch.arange(num_experts, device=expert_KGS.device)
    goes_GET = (expert_GT[:, None] == experts_E[:, None]) & tried_GT[:, None]
    goes_GET = goes_GET.to(torch.int32)
    slot_GT = ((running_count(goes_GET) - 1) * goes_GET).sum(1)
    slot_KGS = slot_GT.reshape(groups, choices, size).permute(1, 0, 2).to(torch.int64)
    return slot_KGS, goes_GET[..., :size].sum(-1), goes_GET.sum(-1)


def running_count(x: Tensor) -> Tensor:
    """``cumsum`` over the last dimension of an int32 tensor, by blocks where its length allows."""
    length = x.shape[-1]
    if length <= _BLOCK or length % _BLOCK:
        return x.cumsum(-1, dtype=torch.int32)
    inner = x.reshape(x.shape[:-1] + (-1, _BLOCK)).cumsum(-1, dtype=torch.int32)
    totals = inner[..., -1]
    before = totals.cumsum(-1, dtype=torch.int32) - totals
    return (inner + before[..., None]).reshape(x.shape)


def _weights(gates_GSE: Tensor, expert_KGS: Tensor, kept_KGS: Tensor, rule: RoutingRule) -> Tensor:
    """Weights [K, G, S]. Dropping is a product with 0, not a selection: NaN gates stay NaN."""
    gate_KGS = gates_GSE.gather(-1, expert_KGS.permute(1, 2, 0)).permute(2, 0, 1)
    kept_KGS = kept_KGS.to(gate_KGS.dtype)
    if rule.top_k == 1:
        return gate_KGS * kept_KGS
    counted_KGS = gate_KGS if rule.renormalize == "chosen" else gate_KGS * kept_KGS
    total_GS = counted_KGS.sum(0).clamp_min(torch.finfo(gate_KGS.dtype).eps)
    return gate_KGS * kept_KGS / total_GS


def _losses(
    logits_GSE: Tensor, gates_GSE: Tensor, first_GE: Tensor, used_GS: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The balance loss and the z-loss, both over the used tokens."""
    if used_GS is None:
        used_GS = torch.ones_like(logits_GSE[..., 0])
    used_GS = used_GS.to(logits_GSE.dtype)
    tokens_G = used_GS.sum(-1)
    total = tokens_G.sum().clamp_min(1)
    gate_sum_GE = (gates_GSE * used_GS[..., None]).sum(1)
    # E^2 / E * sum_e (c_e / n)(sum of gates / n), times n for the weight of the group
    balance_G = (first_GE * gate_sum_GE).sum(-1) / tokens_G.clamp_min(1)
    aux_loss = logits_GSE.shape[-1] * balance_G.sum() / total
    z_loss = (torch.logsumexp(logits_GSE, dim=-1).square() * used_GS).sum() / total
    return aux_loss, z_loss
