"""The state_dict of a whole model whose experts are spread over an expert parallel group."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.checkpoint import STACKED
from deepspeed.utils import groups

_ONE_EXPERT = re.compile(r"(?<=\.deepspeed_moe\.experts\.deepspeed_experts\.)(\d+)(?=\.)")


def whole_state_dict(engine: Any) -> OrderedDict[str, Any] | None:
    """The weights of all experts and the rest, as one process would have them; None but on rank 0.

    All processes must call it. Tensors are copies on the CPU, each as large as itself (ZeRO's
    weights are views of one buffer, which a file of them would hold whole); tied ones stay tied.
    """
    state = engine.module.state_dict()
    first = dist.get_rank() == 0
    spread = engine.has_moe_layers and groups.get_expert_parallel_world_size() > 1
    result: OrderedDict[str, Any] = OrderedDict()
    seen: dict[Any, Any] = {}
    for name, value in state.items():
        expert = spread and (STACKED in name or _ONE_EXPERT.search(name))
        if expert and torch.is_tensor(value):
            result.update(_all_experts(engine, name, value, first))
        elif first:
            result[name] = _copy(value, seen)
    return result if first else None


def _all_experts(engine: Any, name: str, value: Any, first: bool) -> dict[str, Any]:
    group = groups.get_expert_parallel_group()
    parts = [torch.empty_like(value.contiguous()) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, value.detach().contiguous(), group=group)
    if not first:
        return {}
    if STACKED in name:
        return {name: torch.cat([part.cpu() for part in parts])}
    local = engine.num_experts // len(parts)
    number = int(_ONE_EXPERT.search(name).group())
    return {
        _ONE_EXPERT.sub(str(rank * local + number), name): part.cpu()
        for rank, part in enumerate(parts)
    }


def _copy(value: Any, seen: dict[Any, Any]) -> Any:
    if not torch.is_tensor(value):
        return value
    place = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
    if not value.numel():
        return value.detach().clone().cpu()
    if place not in seen:
        seen[place] = value.detach().to("cpu", copy=True)
    return seen[place]
