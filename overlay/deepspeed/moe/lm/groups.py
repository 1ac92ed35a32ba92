"""Parameter groups in the form that DeepSpeed's engine and ZeRO expect of a model with experts."""

from __future__ import annotations

from typing import Any

from deepspeed.moe.utils import is_moe_param
from torch import nn


def param_groups(model: nn.Module, split_weight_decay: bool = False) -> list[dict[str, Any]]:
    """The parameters of ``model`` as optimizer groups: dense ones and experts apart.

    A group of experts carries ``"moe": True``, by which commit bd3ebd's ZeRO knows that its
    gradients are reduced over the expert data parallel group alone; an empty group is left out.

    Args:
        model: any module; experts are the parameters with ``allreduce = False``.
        split_weight_decay: put biases and layer norms (of an expert by itself: its vectors) in
            groups of their own with ``"weight_decay": 0.0``.
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
