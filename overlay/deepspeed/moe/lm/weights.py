"""Initial weights of the whole model from one seed.

Every dense parameter has a random stream seeded by its name, every expert one seeded by its global
number (deepspeed/moe/expert_init.py), always on the CPU. The result is the same for every expert
parallel size, MoE implementation and device.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from deepspeed.moe.expert_init import derive_seed, initialise_experts
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import is_moe_param
from deepspeed.utils import groups
from torch import Tensor, nn

_RESIDUAL_PROJECTIONS = ("attention.out.weight", "ffn.fc2.weight")


@torch.no_grad()
def _normal(parameter: Tensor, std: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(parameter.shape, device="cpu").normal_(std=std, generator=generator)
    parameter.copy_(drawn)


def initialise(model: nn.Module, seed: int, std: float, output_std: float) -> None:
    """Set every weight of a :class:`~deepspeed.moe.lm.model.MoELM`; meta tensors are skipped.

    Matrices are normal with ``std``, those whose output is added to the residual stream with
    ``output_std``; biases are 0, and layer norms the identity.
    """
    # torch draws on one thread; with separate streams every matrix can have its own thread
    with torch.no_grad(), ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = []
        for name, parameter in model.named_parameters():
            if parameter.is_meta or is_moe_param(parameter):
                continue
            if parameter.dim() > 1:
                wanted = output_std if name.endswith(_RESIDUAL_PROJECTIONS) else std
                drawn.append(pool.submit(_normal, parameter, wanted, derive_seed(seed, name)))
            elif name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.zero_()
        for name, module in model.named_modules():
            if isinstance(module, MoE) and not next(module.parameters()).is_meta:
                _initialise_moe(module, derive_seed(seed, name))
        for matrix in drawn:
            matrix.result()  # raises the thread's exception


def _initialise_moe(moe: MoE, seed: int) -> None:
    experts = moe.deepspeed_moe.experts
    first = groups.get_expert_parallel_rank() * moe.deepspeed_moe.num_local_experts
    if hasattr(experts, "deepspeed_experts"):
        initialise_experts(experts.deepspeed_experts, first, seed)
    else:
        experts.stacked.initialise(first, seed)
