"""Tensors as bytes and back, also where torch refuses to view one in a type of another width.

torch 1.10 refuses it; there each element's bytes are taken by shifts, the lowest first, as x86 and
Arm keep them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _views_another_width() -> bool:
    try:
        torch.zeros(1).view(torch.uint8)
    except RuntimeError:
        return False
    return True


VIEWS_ANOTHER_WIDTH = _views_another_width()
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


def to_bytes(values: Tensor) -> Tensor:
    """``values`` [n] of 1, 2 or 4 bytes an element as uint8 [n * width]."""
    if VIEWS_ANOTHER_WIDTH:
        return values.view(torch.uint8)
    width = values.element_size()
    words = values.view(_INTEGERS[width]).to(torch.int32).unsqueeze(1)
    return (words >> _shifts(width, values.device) & 255).to(torch.uint8).flatten()


def from_bytes(message: Tensor, dtype: torch.dtype) -> Tensor:
    """The values [n] in ``dtype`` of :func:`to_bytes`; ``message`` is aligned to their width."""
    if VIEWS_ANOTHER_WIDTH:
        return message.view(dtype)
    width = torch.empty(0, dtype=dtype).element_size()
    words = message.view(-1, width).to(torch.int32) << _shifts(width, message.device)
    return words.sum(1, dtype=torch.int32).to(_INTEGERS[width]).view(dtype)


def _shifts(width: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8 * width, 8, dtype=torch.int32, device=device)
