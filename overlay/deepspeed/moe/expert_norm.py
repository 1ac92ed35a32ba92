"""Body of clip-norm-with-experts.patch, unfused-norm-with-experts.patch: the gradient norm.

Dense gradients are the same on every process, but each process of an expert parallel group holds
the gradients of other experts. The p-norm of the whole gradient therefore sums the p-th powers of
the dense gradients once and of every process's experts; the average of the processes' norms is
wrong (defects 8 and 9, docs/reference/defects.md).
"""

from __future__ import annotations

from typing import Iterable

import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from deepspeed.utils import groups


def with_experts_of_other_ranks(
    norm: float, parameters: Iterable[torch.Tensor], norm_type: float = 2.0
) -> float:
    """Complete ``norm``, the p-norm of this process's gradients, to that of the whole gradient.

    Args:
        norm: p-norm over ``parameters`` as this process holds them, dense and experts together.
        parameters: the parameters with their ``.grad``; experts carry ``allreduce = False``.
        norm_type: p; ``inf`` for the maximum norm.

    Every process of the expert parallel group must call it, in the same order. Without experts it
    communicates nothing and returns ``norm``.
    """
    experts = [p for p in parameters if is_moe_param(p)]
    if not experts or groups.get_expert_parallel_world_size() == 1:
        return norm
    group = groups.get_expert_parallel_group()
    if norm_type == float("inf"):
        largest = torch.tensor([norm], dtype=torch.float64, device=experts[0].device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        return largest.item()
    here = sum_of_powers(experts, norm_type)
    everywhere = here.clone()
    dist.all_reduce(everywhere, group=group)
    return (norm**norm_type + (everywhere - here).item()) ** (1.0 / norm_type)


def expert_grad_norm(param_groups: Iterable[Iterable[torch.Tensor]]) -> float:
    """2-norm of all experts' gradients over the whole expert parallel group, on every process."""
    experts = [p for group in param_groups for p in group if is_moe_param(p)]
    if not experts:
        return 0.0
    total = sum_of_powers(experts, 2.0)
    if groups.get_expert_parallel_world_size() > 1:
        dist.all_reduce(total, group=groups.get_expert_parallel_group())
    return total.item() ** 0.5


def sum_of_powers(parameters: list[torch.Tensor], norm_type: float) -> torch.Tensor:
    """``sum |grad|^p`` over ``parameters`` as one float64 element on their device; [1]."""
    total = torch.zeros(1, dtype=torch.float64, device=parameters[0].device)
    for parameter in parameters:
        if parameter.grad is not None:
            total += parameter.grad.detach().double().abs().pow(norm_type).sum()
    return total
