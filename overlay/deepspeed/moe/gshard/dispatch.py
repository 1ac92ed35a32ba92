"""Moving tokens to the experts' slots and back by index, forwards and backwards.

Each slot holds at most one choice and each choice has at most one slot, so that the gradient of a
gather is a gather by the inverse index. Autograd would make it a scatter with atomic additions,
which takes longer than all the rest of the layer.

Shape suffixes: see the head of the package.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .routing import Routing


class SlotIndices(NamedTuple):
    """Flat indices of a routing, and their inverse."""

    slot_KN: Tensor
    """Row (of E R) of each choice, 0 where it is not kept."""
    kept_KN: Tensor
    choice_R: Tensor
    """The choice (of K N, choice-major) in each of the E R rows, 0 where the row is empty."""
    filled_R: Tensor
    num_experts: int
    first_row_E1: Tensor | None
    """First row of each expert and the end of the last, int32, [E + 1]; None: e R."""


def slot_indices(routing: Routing, packed: bool = False) -> SlotIndices:
    """Flat indices of a routing; expert e has rows e R to (e + 1) R, group after group.

    ``packed`` moves all rows that are filled to the front: those of expert e follow those of the
    experts before it, and the empty ones come last.
    """
    choices, groups, size = routing.expert_KGS.shape
    first_row_E1 = None
    if packed:
        taken_EG = routing.taken_GE.t()
        end_EG = taken_EG.reshape(-1).cumsum(0).reshape(taken_EG.shape)
        first_row_E1 = F.pad(end_EG[:, -1], (1, 0)).to(torch.int32)
        before_GE = (end_EG - taken_EG).t()[None].expand(choices, -1, -1)
        slot_KGS = before_GE.gather(2, routing.expert_KGS) + routing.slot_KGS
    else:
        group_G1 = torch.arange(groups, device=routing.expert_KGS.device)[:, None]
        slot_KGS = (routing.expert_KGS * groups + group_G1) * routing.capacity + routing.slot_KGS
    slot_KN = slot_KGS.reshape(choices, groups * size)
    kept_KN = routing.kept_KGS.reshape(choices, groups * size)
    rows = routing.num_experts * groups * routing.capacity
    # choices without a slot write to one row more than there is, which is then cut off
    target = torch.where(kept_KN, slot_KN, torch.full_like(slot_KN, rows)).reshape(-1)
    choice_R = torch.full((rows + 1,), -1, dtype=torch.int64, device=target.device)
    number = torch.arange(target.numel(), device=target.device)
    choice_R = choice_R.scatter(0, target, number)[:rows]
    return SlotIndices(
        slot_KN=torch.where(kept_KN, slot_KN, torch.zeros_like(slot_KN)),
        kept_KN=kept_KN,
        choice_R=choice_R.clamp_min(0),
        filled_R=choice_R >= 0,
        num_experts=routing.num_experts,
        first_row_E1=first_row_E1,
    )


def _masked(rows: Tensor, mask: Tensor) -> Tensor:
    """``rows`` [..., M] where ``mask`` [...], else 0; selects, so that NaN outside is dropped."""
    return torch.where(mask[..., None], rows, torch.zeros((), dtype=rows.dtype, device=rows.device))


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NM: Tensor, slot_KN: Tensor, kept_KN: Tensor, choice_R: Tensor, filled_R: Tensor
    ) -> Tensor:
        ctx.save_for_backward(slot_KN, kept_KN)
        return _masked(x_NM[choice_R % x_NM.shape[0]], filled_R)

    @staticmethod
    def backward(ctx: Any, grad_RM: Tensor) -> tuple[Tensor | None, ...]:
        slot_KN, kept_KN = ctx.saved_tensors
        return _masked(grad_RM[slot_KN], kept_KN).sum(0), None, None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y_RM: Tensor,
        weight_KN: Tensor,
        slot_KN: Tensor,
        kept_KN: Tensor,
        choice_R: Tensor,
        filled_R: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(y_RM, weight_KN, slot_KN, kept_KN, choice_R, filled_R)
        y_KNM = _masked(y_RM[slot_KN], kept_KN).to(weight_KN.dtype)
        out_NM = (y_KNM * weight_KN[..., None]).sum(0)
        # torch.compile of torch 2.11 loses the gradient behind a conversion that does nothing.
        return out_NM if out_NM.dtype == y_RM.dtype else out_NM.to(y_RM.dtype)

    @staticmethod
    def backward(ctx: Any, grad_NM: Tensor) -> tuple[Tensor | None, ...]:
        y_RM, weight_KN, slot_KN, kept_KN, choice_R, filled_R = ctx.saved_tensors
        exact_NM = grad_NM.to(weight_KN.dtype)
        weight_R = weight_KN.reshape(-1)[choice_R]
        grad_RM = exact_NM[choice_R % grad_NM.shape[0]] * weight_R[:, None]
        grad_RM = _masked(grad_RM, filled_R).to(y_RM.dtype)
        y_KNM = _masked(y_RM[slot_KN], kept_KN).to(weight_KN.dtype)
        return grad_RM, (y_KNM * exact_NM).sum(-1), None, None, None, None


def dispatch(x_NM: Tensor, slots: SlotIndices) -> Tensor:
    """Copy each token to the slots of its kept choices: [N, M] to [E, R, M], empty rows 0.

    If the slots are packed, to [E R, M]. N is at least 1.
    """
    rows = _Dispatch.apply(x_NM, slots.slot_KN, slots.kept_KN, slots.choice_R, slots.filled_R)
    if slots.first_row_E1 is not None:
        return rows
    return rows.reshape(slots.num_experts, -1, x_NM.shape[-1])


def combine(y_ERM: Tensor, weight_KN: Tensor, slots: SlotIndices) -> Tensor:
    """Each token's weighted sum of its kept choices' outputs: [E, R, M] or [E R, M] to [N, M].

    Products and sums are in the dtype of ``weight_KN`` (fp32), the result in that of ``y_ERM``.
    """
    rows = y_ERM.reshape(-1, y_ERM.shape[-1])
    return _Combine.apply(
        rows, weight_KN, slots.slot_KN, slots.kept_KN, slots.choice_R, slots.filled_R
    )
