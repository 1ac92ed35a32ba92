"""The backward pass of causal attention on a Hopper GPU, by flash-attn-4 (Tri Dao and others).

At a head size of 48 it takes 0.99 ms, cuDNN's 1.40 ms (64 sequences of 1024, 16 heads, an H100),
and it writes the three gradients into one tensor. cuDNN's forward pass is faster (0.39 ms, 0.48 ms
by flash-attn), and this kernel takes the log-sums that it writes.

Importing this module imports flash-attn, which takes seconds: only policy.py does so.

Shape suffixes: B sequences, S positions, 3 for query, key and value, N heads, D width of a head.
"""

from __future__ import annotations

import os
import types
import warnings
from importlib.metadata import version
from typing import Any, Callable

# read when the package is imported: keep compiled kernels on disk, as quack does by default
os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")

import torch
from flash_attn.cute import interface
from torch import Tensor

# deprecation warnings of the package and of cutlass, while a kernel compiles
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


# Defect of 4.0.0b36: its kernel for Hopper (flash_bwd_sm90.py) rounds the head size of the query's
# gradient up to a multiple of 16, but interface.py clears and reads that buffer with the size
# rounded up to 32, so that a head size of 48 gets a wrong gradient. This is interface.py's function
# with 16 in both places.
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
