"""Dispatch and combine as products, as the paper writes them (section 3.2).

The readable reference for dispatch.py: it gives the same results and takes [G, S, E, C] memory.
Shape suffixes: see the head of the package.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .routing import Routing


def product_form(routing: Routing) -> tuple[Tensor, Tensor]:
    """The paper's dense tensors of a routing: combine weights and dispatch mask, [G, S, E, C]."""
    experts_E = torch.arange(routing.num_experts, device=routing.expert_KGS.device)
    slots_C = torch.arange(routing.capacity, device=routing.expert_KGS.device)
    at_KGSE = routing.expert_KGS[..., None] == experts_E
    in_KGSC = routing.slot_KGS[..., None] == slots_C
    placed_KGSEC = at_KGSE[..., None] & in_KGSC[..., None, :] & routing.kept_KGS[..., None, None]
    combine_GSEC = (routing.weight_KGS[..., None, None] * placed_KGSEC).sum(0)
    return combine_GSEC, placed_KGSEC.any(0)


def dispatch_by_product(x_NM: Tensor, mask_GSEC: Tensor) -> Tensor:
    """Copy each token to the slots of its kept choices: [N, M] to [E, R, M], empty rows 0."""
    groups, size, experts, capacity = mask_GSEC.shape
    x_GSM = x_NM.reshape(groups, size, -1)
    x_EGCM = torch.einsum("gsec,gsm->egcm", mask_GSEC.to(x_NM.dtype), x_GSM)
    return x_EGCM.reshape(experts, groups * capacity, -1)


def combine_by_product(y_ERM: Tensor, combine_GSEC: Tensor) -> Tensor:
    """Each token's weighted sum of its kept choices' outputs: [E, R, M] to [N, M]."""
    groups, size, experts, capacity = combine_GSEC.shape
    y_EGCM = y_ERM.reshape(experts, groups, capacity, -1).to(combine_GSEC.dtype)
    out_GSM = torch.einsum("gsec,egcm->gsm", combine_GSEC, y_EGCM)
    return out_GSM.reshape(groups * size, -1).to(y_ERM.dtype)
