"""New weights between processes as 8-bit changes that correct themselves.

The owner of a partition sends by how much its fp32 master differs from the weights that all
processes hold, in the blocks of int8_messages.py: 1.016 bytes an element. Every process, the owner
too, adds the same rounded change to the same weights, so the copies stay equal bit for bit. What
rounding took from a change is part of the next difference, so a weight is never further from its
master than one change's rounding (1/254 of the block's largest change) and the weights' own.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from .int8_messages import pack, unpack


@torch.no_grad()
def share_changes(
    weights: Tensor, partition: Tensor, rank: int, gather: Callable[[Tensor], None]
) -> None:
    """Bring ``weights`` [n] of all processes to the new masters.

    ``partition`` [n / processes] in fp32: the masters of this process's piece of ``weights``.
    ``gather`` fills a tensor of messages, one after the other by rank, from each process's own.
    """
    pieces = list(weights.split(partition.numel()))
    message = pack(partition - pieces[rank].float())
    messages = message.new_empty(len(pieces), message.numel())
    messages[rank].copy_(message)
    gather(messages.view(-1))
    for piece, change in zip(pieces, messages):
        piece.copy_(piece.float() + unpack(change, piece.numel()))
