"""The backward pass of causal attention on a Hopper GPU, by flash-attn-4 (Tri Dao and others).

At a head size of 48 it takes 0.99 ms where cuDNN's takes 1.40 (64 sequences of 1024, 16 heads, an
H100), and it writes the three gradients where they are wanted, into one tensor. cuDNN's forward
pass is the faster one (0.39 against 0.48), and its log-sums are what this takes.

Importing this module imports flash-attn, which takes seconds: ask kernels.py.

Shape suffixes: B sequences, S positions, 3 for query, key and value, N heads, D width of a head.
"""

from __future__ import annotations

import os
import types
import warnings
from importlib.metadata import version
from typing import Any, Callable

# read when the package is imported: keeps compiled kernels on disk, as quack does by itself
os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")

import torch
from flash_attn.cute import interface
from torch import Tensor

# of its own and cutlass's deprecations, while it compiles
warnings.filterwarnings("ignore", module=r"(flash_attn|quack|cutlass)\b")
VERSION = f"flash-attn-4 {version('flash-attn-4')}"
# The release that was read and measured; the function below is not part of its public interface.
TRIED = "4.0.0b36"
if version("flash-attn-4") != TRIED:
    raise ImportError(f"release {version('flash-attn-4')} was not tried; expected {TRIED}")


def _rounded_as_the_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **{**options, "hdim_multiple_of": 16})

    return call


# 4.0.0b36 keeps the query's gradient in tiles of the head size rounded up to 16 in its kernel for
# Hopper (flash_bwd_sm90.py), but clears them before and reads them after by the size rounded up to
# 32 (interface.py), so that a head size of 48 gets a wrong one. This is its function with 16 there.
_backward = types.FunctionType(
    interface._flash_attn_bwd.__code__,
    {
        **vars(interface),
        "_bwd_preprocess": _rounded_as_the_kernel(interface._bwd_preprocess),
        "_bwd_postprocess_convert": _rounded_as_the_kernel(interface._bwd_postprocess_convert),
    },
    "attention_backward",
    interface._flash_attn_bwd.__defaults__,
    interface._flash_attn_bwd.__closure__,
)


def supports_heads(qkv_BS3ND: Tensor) -> bool:
    """Whether the kernel takes these: 16 bit, heads of a multiple of 16 up to 128."""
    return (
        qkv_BS3ND.is_cuda
        and qkv_BS3ND.dtype in (torch.float16, torch.bfloat16)
        and qkv_BS3ND.numel() > 0
        and qkv_BS3ND.shape[-1] % 16 == 0
        and qkv_BS3ND.shape[-1] <= 128
    )


def backward(dy_BSND: Tensor, qkv_BS3ND: Tensor, y_BSND: Tensor, lse_BNS: Tensor) -> Tensor:
    """The gradient of ``qkv_BS3ND``, from that of the result and the forward pass's log-sums."""
    dqkv_BS3ND = torch.empty_like(qkv_BS3ND)
    gradients = dict(zip(("dq", "dk", "dv"), dqkv_BS3ND.unbind(2)))
    _backward(*qkv_BS3ND.unbind(2), y_BSND, dy_BSND, lse_BNS, causal=True, **gradients)
    return dqkv_BS3ND
