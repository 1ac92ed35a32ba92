"""Parameter groups as DeepSpeed's engine and ZeRO expect them from a model with experts."""

from __future__ import annotations

from typing import Any

from deepspeed.moe.utils import is_moe_param
from torch import nn


def param_groups(model: nn.Module, split_weight_decay: bool = False) -> list[dict[str, Any]]:
    """The parameters of ``model`` as optimizer groups: dense parameters and experts separately.

    A group of experts has ``"moe": True``: commit bd3ebd's ZeRO then reduces its gradients over the
    expert data parallel group only. Empty groups are omitted.

    Args:
        model: any module; experts are the parameters with ``allreduce = False``.
        split_weight_decay: put biases and layer norms (of an expert: its vectors) into separate
            groups with ``"weight_decay": 0.0``.
    """
    groups: dict[str, dict[str, Any]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        experts = is_moe_param(parameter)
        dims = parameter.dim() - getattr(parameter, "adafactor_batch_dims", 0)
        plain = split_weight_decay and dims < 2
        name = ("experts" if experts else "dense") + ("_no_decay" if plain else "")
        if name not in groups:
            groups[name] = {"params": [], "name": name}
            if experts:
                groups[name]["moe"] = True
            if plain:
                groups[name]["weight_decay"] = 0.0
        groups[name]["params"].append(parameter)
    order = ("dense", "dense_no_decay", "experts", "experts_no_decay")
    return [groups[name] for name in order if name in groups]
