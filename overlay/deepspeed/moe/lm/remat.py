"""Rematerialisation (activation checkpointing) of a layer.

What is kept is the layer's input and, in a compiled layer, the output of fused attention: a small
part of the activations, the dearest of them to compute again, and the only one whose draws
(dropout) the compiler could repeat only by setting the generator's state back, which a CUDA graph
does not allow.
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
    """``layer(x_BSM)``, its activations dropped and computed again in the backward pass."""
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
