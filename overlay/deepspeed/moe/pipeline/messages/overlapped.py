"""Hidden states to the next stage and gradients to the one before, while both compute.

The receive of the next message of each kind is posted while this stage computes with the last one;
a send's buffer is kept until it is gone. transport.py says how a message travels.

A posted receive can be something that runs on the GPU until its message is there, and whatever
waits for the whole device (a kernel that is compiled and timed, the allocator that gives memory
back) waits for it. So a receive is posted only where its message needs nothing more from this
process. The first gradient does: it follows from the hidden states that this stage is still to
send.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

from ..stage_groups import StageGroups
from .transport import DOWN, UP

AHEAD = 1


class Messages:
    """The messages of one step between this process and the neighbours in its column.

    ``transport``: one of transport.py. ``form``: shape of a hidden state [B, S, M]; every
    micro-batch has the same. ``count``: micro-batches. ``backward``: gradients come back.
    """

    def __init__(
        self,
        groups: StageGroups,
        transport: Any,
        form: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        count: int,
        backward: bool = True,
    ) -> None:
        self.transport, self.stages, stage = transport, groups.stages, groups.stage
        self.empty = lambda: torch.empty(form, dtype=dtype, device=device)
        self.before = None if groups.first else stage - 1
        self.after = None if groups.last else stage + 1
        transport.prepare(math.prod(form) * torch.empty((), dtype=dtype).element_size())
        self.hidden = _Receiver(self.empty, self.before, transport, DOWN, count)
        self.hidden.post()
        back = count if backward else 0
        self.gradients = _Receiver(self.empty, self.after, transport, UP, back)
        self.sent: dict[str, deque[tuple[Any, Tensor]]] = {DOWN: deque(), UP: deque()}

    def receive_hidden(self) -> Tensor:
        """The next micro-batch's hidden states from the stage before."""
        return self.hidden.take()

    def receive_gradient(self) -> Tensor:
        """The gradient of the next micro-batch's hidden states that this stage sent."""
        gradient = self.gradients.take()
        self._forget(DOWN, len(self.sent[DOWN]) - 1)  # its hidden states have arrived
        return gradient

    def send_hidden(self, hidden: Tensor) -> None:
        self._send(hidden, self.after, DOWN)

    def send_gradient(self, gradient: Tensor) -> None:
        self._send(gradient, self.before, UP)
        # The stage before has received what lies so far back, by either schedule: it is at most
        # 2 (P - 1) micro-batches ahead, and this one has the hidden states that followed.
        self._forget(UP, 2 * self.stages - 1)

    def finish(self) -> None:
        """Wait until everything is sent."""
        for way in self.sent:
            self._forget(way, 0)

    def _send(self, value: Tensor, to: int | None, way: str) -> None:
        assert to is not None, "there is no stage there"
        value = value.detach().contiguous()
        self.sent[way].append((self.transport.send(value, to, way), value))

    def _forget(self, way: str, kept: int) -> None:
        """Keep the last ``kept`` buffers alone."""
        while len(self.sent[way]) > kept:
            self.sent[way].popleft()[0].wait()


class _Receiver:
    """``count`` messages from stage ``source``, in order."""

    def __init__(
        self, empty: Any, source: int | None, transport: Any, way: str, count: int
    ) -> None:
        self.empty, self.source, self.transport, self.way = empty, source, transport, way
        self.left = count if source is not None else 0
        self.posted: deque[tuple[Any, Tensor]] = deque()

    def post(self) -> None:
        """Start receiving the next message, if there is one and none is being received."""
        while self.left and len(self.posted) < AHEAD:
            place = self.empty()
            work = self.transport.receive(place, self.source, self.way)
            self.posted.append((work, place))
            self.left -= 1

    def take(self) -> Tensor:
        self.post()
        work, place = self.posted.popleft()
        work.wait()
        self.post()
        return place
