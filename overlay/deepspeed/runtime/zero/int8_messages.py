"""Gradients between processes as blocks of 8-bit integers, with error feedback.

A block of 256 elements travels as 256 signed bytes and one fp32 scale, its largest magnitude over
127: 1.016 bytes an element. Every owner gets the piece of each process and adds them up in fp32;
its own is added exactly. What rounding takes from a message is added to the next step's (error
feedback; Seide et al. 2014, Karimireddy et al. 2019), so no part of a gradient is lost for good.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK = 256
_SCALE_BYTES = 4
_SHIFTS = (0, 8, 16, 24)


def pack(values: Tensor) -> Tensor:
    """``values`` [n] in fp32 as uint8 [b * 260] with b = ceil(n / 256): integers, then scales.

    A block that holds infinity or NaN comes back as NaN.
    """
    blocks = -(-values.numel() // BLOCK)
    padded = values.new_zeros(blocks * BLOCK)
    padded[: values.numel()] = values
    rows = padded.view(blocks, BLOCK)
    scales = rows.abs().amax(1) / 127
    scales = torch.where(torch.isfinite(scales), scales, torch.full_like(scales, float("nan")))
    divisor = torch.where(scales > 0, scales, torch.ones_like(scales))
    whole = (rows / divisor.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([whole.view(torch.uint8).flatten(), _to_bytes(scales)])


def unpack(message: Tensor, numel: int) -> Tensor:
    """The ``numel`` fp32 values of a message of :func:`pack`."""
    blocks = message.numel() // (BLOCK + _SCALE_BYTES)
    whole = message[: blocks * BLOCK].view(torch.int8).view(blocks, BLOCK)
    scales = _from_bytes(message[blocks * BLOCK :])
    return (whole.float() * scales.unsqueeze(1)).flatten()[:numel]


def _views_another_width() -> bool:
    """Whether a tensor of this torch can be viewed in a type of another width; 1.10 refuses it."""
    try:
        torch.zeros(1).view(torch.uint8)
    except RuntimeError:
        return False
    return True


VIEWS_ANOTHER_WIDTH = _views_another_width()


def _to_bytes(scales: Tensor) -> Tensor:
    """fp32 [b] as uint8 [4 b]."""
    if VIEWS_ANOTHER_WIDTH:
        return scales.view(torch.uint8)
    shifts = torch.tensor(_SHIFTS, dtype=torch.int32, device=scales.device)
    words = scales.view(torch.int32).unsqueeze(1)
    return (words >> shifts & 255).to(torch.uint8).flatten()


def _from_bytes(message: Tensor) -> Tensor:
    """The fp32 [b] of :func:`_to_bytes`."""
    if VIEWS_ANOTHER_WIDTH:
        return message.clone().view(torch.float32)  # aligned
    shifts = torch.tensor(_SHIFTS, dtype=torch.int32, device=message.device)
    words = message.view(-1, _SCALE_BYTES).to(torch.int32) << shifts
    return words.sum(1, dtype=torch.int32).view(torch.float32)


def packed_bytes(numel: int) -> int:
    return -(-numel // BLOCK) * (BLOCK + _SCALE_BYTES)


class Residual:
    """What earlier messages lost by rounding, for each element of a flat buffer, in fp32."""

    def __init__(self, like: Tensor) -> None:
        self.values = torch.zeros_like(like)

    def rescale(self, factor: float) -> None:
        """The loss scale changed by ``factor``; what an overflow left is dropped."""
        kept = torch.where(torch.isfinite(self.values), self.values, torch.zeros_like(self.values))
        self.values.copy_(kept * factor)


class Int8Exchange:
    """Sends each owner its piece of ``whole`` [n]; :meth:`wait` adds up this process's own piece.

    ``pieces``: (owner, first, last), by rank in ``group``.
    """

    def __init__(
        self,
        whole: Tensor,
        pieces: list[tuple[int, int, int]],
        residual: Residual,
        rank: int,
        group: Any,
    ) -> None:
        _, first, last = pieces[rank]
        self.own = whole[first:last]
        messages = []
        for owner, first, last in pieces:
            if owner == rank or first == last:
                messages.append(torch.empty(0, dtype=torch.uint8, device=whole.device))
                continue
            lost = residual.values[first:last]
            wanted = whole[first:last] + lost
            message = pack(wanted)
            torch.sub(wanted, unpack(message, last - first), out=lost)
            messages.append(message)
        size = packed_bytes(self.own.numel())
        sizes = [0 if other == rank else size for other in range(len(pieces))]
        self.sent = torch.cat(messages)
        self.received = self.sent.new_empty(sum(sizes))
        self.sizes = sizes
        self.work = dist.all_to_all_single(
            self.received,
            self.sent,
            sizes,
            [m.numel() for m in messages],
            group=group,
            async_op=True,
        )

    def wait(self) -> None:
        self.work.wait()
        for message in self.received.split(self.sizes):
            if message.numel():
                self.own.add_(unpack(message, self.own.numel()))
