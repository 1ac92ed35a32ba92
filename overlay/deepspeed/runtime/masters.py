"""fp32 masters follow whenever the model's weights are loaded.

The optimizer updates the masters and copies them over the weights. Weights that are loaded into the
model alone are therefore gone after one step, unless the masters are made from them anew.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch


class _Follow:
    """A hook of ``load_state_dict``; a copy of the model, deep or pickled, gets an idle one."""

    def __init__(self, optimizer: Any = None) -> None:
        self._optimizer = weakref.ref(optimizer) if optimizer is not None else None

    def __call__(self, module: torch.nn.Module, incompatible_keys: Any) -> None:
        optimizer = self._optimizer and self._optimizer()
        if optimizer is not None:
            optimizer.refresh_fp32_params()

    def __deepcopy__(self, memo: Any) -> _Follow:
        return _Follow()

    def __reduce__(self) -> Any:
        return (_Follow, ())


def watch(engine: Any) -> None:
    """Let the masters of ``engine`` follow every ``load_state_dict`` of its module.

    ZeRO-3, whose weights are partitioned, is left alone. Before torch 1.12, which has no such hook,
    only ``engine.load_module_state_dict`` is seen (:func:`follow`).
    """
    register = getattr(engine.module, "register_load_state_dict_post_hook", None)
    if register is not None and _has_masters(engine):
        register(_Follow(engine.optimizer))


def follow(engine: Any) -> None:
    """Make the masters from the weights where :func:`watch` could not."""
    if not hasattr(engine.module, "register_load_state_dict_post_hook") and _has_masters(engine):
        engine.optimizer.refresh_fp32_params()


def load_alone(engine: Any, saved: dict[str, Any] | None) -> None:
    """Masters without the optimizer's state, for an engine without ZeRO whose weights were loaded.

    Taken from ``saved``, the optimizer's part of the checkpoint, in full precision; made from the
    weights where it holds none, or others.
    """
    if not _has_masters(engine):
        return
    optimizer = engine.optimizer
    name = "fp32_groups_flat" if hasattr(optimizer, "fp32_groups_flat") else "fp32_groups"
    masters = saved.get(name) if isinstance(saved, dict) else None
    if masters is not None and _shapes(masters) == _shapes(getattr(optimizer, name)):
        optimizer.load_state_dict(saved, load_optimizer_states=False)
    else:
        optimizer.refresh_fp32_params()


def _has_masters(engine: Any) -> bool:
    found = hasattr(engine.optimizer, "refresh_fp32_params")
    return found and not engine.zero_optimization_partition_weights()


def _shapes(groups: Any) -> list[Any]:
    return [tuple(g.shape) if torch.is_tensor(g) else _shapes(g) for g in groups]
