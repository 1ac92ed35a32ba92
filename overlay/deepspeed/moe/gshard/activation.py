"""GELU in its tanh form, as GPT-2 and Megatron use it, on every torch from 1.10 on."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_HAS_TANH_FORM = "approximate" in (F.gelu.__doc__ or "")


def gelu_tanh_formula(x: Tensor) -> Tensor:
    """The tanh approximation written out (Hendrycks and Gimpel, arXiv 1606.08415, section 2)."""
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1.0 + torch.tanh(inner))


def gelu(x: Tensor) -> Tensor:
    """GELU, tanh approximation, elementwise; torch's own kernel where it has one (from 1.12)."""
    if _HAS_TANH_FORM:
        return F.gelu(x, approximate="tanh")
    return gelu_tanh_formula(x)
