"""Sums of gradients by exchange: every process gets its piece of each other and adds them in fp32.

A process sends what others own and nothing else: (P - 1) / P of the elements, the least that a
reduction among P processes can do. gloo's own ``reduce`` sends more: it scatters the sums over a
ring of all processes, and then every process sends its part of the result to the owner.

Where a group has several processes on each of several hosts, sums are made inside the host first,
and then each process exchanges what it has summed with those of its place on other hosts
(host_levels.py): of N elements a host sends (H - 1) / H N, whatever its number of processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .as_bytes import from_bytes, to_bytes
from .host_levels import Levels
from .int8_messages import Residual, pack, packed_bytes, unpack


class WideMessages:
    """Elements travel as they are, in ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.width = torch.empty(0, dtype=dtype).element_size()

    def pack(self, values: Tensor, first: int) -> Tensor:
        """fp32 ``values`` [n] as bytes [n * width]; ``first``: their place in the flat buffer."""
        return to_bytes(values.to(self.dtype))

    def unpack(self, message: Tensor, numel: int) -> Tensor:
        """The ``numel`` values of a message of :meth:`pack`."""
        return from_bytes(message, self.dtype)

    def bytes_of(self, numel: int) -> int:
        return numel * self.width


class Int8Messages:
    """Elements travel as blocks of int8 (int8_messages.py); ``residual`` keeps what that lost."""

    def __init__(self, residual: Residual) -> None:
        self.residual = residual

    def pack(self, values: Tensor, first: int) -> Tensor:
        """``values`` and what earlier messages lost at their place, in the next message."""
        lost = self.residual.values[first : first + values.numel()]
        wanted = values + lost
        message = pack(wanted)
        torch.sub(wanted, unpack(message, values.numel()), out=lost)
        return message

    def unpack(self, message: Tensor, numel: int) -> Tensor:
        return unpack(message, numel)

    def bytes_of(self, numel: int) -> int:
        return packed_bytes(numel)


class Exchange:
    """Sends each member of ``group`` its part; :meth:`wait` adds what others sent to ``own``.

    ``parts``: by rank in the group, each with its place in the flat buffer; this process's own,
    ``own``, is fp32, is not sent, and is added to in place.
    """

    def __init__(
        self,
        parts: list[tuple[int, Tensor]],
        rank: int,
        messages: Any,
        group: Any,
    ) -> None:
        self.messages, self.own = messages, parts[rank][1]
        none = torch.empty(0, dtype=torch.uint8, device=self.own.device)
        packed = [
            none if other == rank or not part.numel() else messages.pack(part, first)
            for other, (first, part) in enumerate(parts)
        ]
        size = messages.bytes_of(self.own.numel())
        self.sizes = [0 if other == rank else size for other in range(len(parts))]
        self.sent = torch.cat(packed)
        self.received = self.sent.new_empty(sum(self.sizes))
        self.work = dist.all_to_all_single(
            self.received,
            self.sent,
            self.sizes,
            [message.numel() for message in packed],
            group=group,
            async_op=True,
        )

    def wait(self) -> None:
        """Afterwards ``own`` has the sum over the group."""
        self.work.wait()
        for message in self.received.split(self.sizes):
            if message.numel():
                self.own.add_(self.messages.unpack(message, self.own.numel()))


class SumsByHosts:
    """Like :class:`Exchange` over a whole group that lies on hosts as ``levels`` says.

    ``pieces``: (owner, first, last) of ``whole`` by rank in the group. ``near`` are the messages
    inside a host, ``far`` those between hosts, which start with :meth:`advance`.
    """

    def __init__(
        self,
        whole: Tensor,
        pieces: list[tuple[int, int, int]],
        levels: Levels,
        near: WideMessages,
        far: Any,
    ) -> None:
        self.levels, self.far = levels, far
        columns = [levels.column(pieces, place) for place in range(levels.near)]
        parts = [
            (0, torch.cat([whole[first:last] for _, first, last in column])) for column in columns
        ]
        self.column = columns[levels.place]
        self.inside: Exchange | None = Exchange(parts, levels.place, near, levels.inside)
        self.between: Exchange | None = None
        _, first, last = self.column[levels.host]
        self.target = whole[first:last]

    def advance(self) -> None:
        """Wait for the sums inside the host, and start those between hosts."""
        if self.inside is None:
            return
        self.inside.wait()
        sums = self.inside.own.split([last - first for _, first, last in self.column])
        self.inside = None  # its messages can go
        parts = [(first, part) for (_, first, _), part in zip(self.column, sums)]
        self.between = Exchange(parts, self.levels.host, self.far, self.levels.between)

    def wait(self) -> None:
        """Afterwards this process's own piece of ``whole`` has the sum over the group."""
        self.advance()
        assert self.between is not None
        self.between.wait()
        self.target.copy_(self.between.own)
