"""Rematerialisation (activation checkpointing) of a layer.

It keeps the layer's input and, in a compiled layer, the output of fused attention. That output is a
small part of the activations, takes longest to recompute, and its dropout could be repeated only by
resetting the generator's state, which a CUDA graph does not allow.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable

import torch
from deepspeed.moe.kernels.causal_attention import OPERATOR
from torch import Tensor
from torch.utils.checkpoint import checkpoint

try:
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
except ImportError:
    CheckpointPolicy = None

_CAN_CHOOSE_REENTRANT = "use_reentrant" in inspect.signature(checkpoint).parameters  # torch 1.11
_FUSED_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
)


def recomputed(layer: Callable[[Tensor], Any], x_BSM: Tensor) -> Any:
    """``layer(x_BSM)`` without keeping its activations: the backward pass recomputes them."""
    if CheckpointPolicy is not None and torch.compiler.is_compiling():
        return checkpoint(layer, x_BSM, use_reentrant=False, context_fn=_contexts)
    if _CAN_CHOOSE_REENTRANT:
        return checkpoint(layer, x_BSM, use_reentrant=False)
    return checkpoint(layer, x_BSM)


def _policy(context: Any, operation: Any, *arguments: Any, **options: Any) -> Any:
    if operation in _kept():
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)


@functools.lru_cache(maxsize=None)
def _kept() -> frozenset[Any]:
    fused = [getattr(torch.ops.aten, name, None) for name in _FUSED_ATTENTION]
    fused.append(getattr(torch.ops.dsmoe, OPERATOR, None))
    return frozenset(name.default for name in fused if name is not None)
