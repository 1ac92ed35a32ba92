"""Hidden states to the next stage and gradients to the one before, while both compute.

The receive of the next message of each kind is posted while this stage computes with the last one;
a send's buffer is kept until it is gone. The two directions have a group each: on one NCCL
communicator, whose operations run in order, two neighbours that both send would wait for each
other. Not more than one receive is posted: a second NCCL kernel that waits in its stream for the
first could keep one of the device's queues from the kernels that compute.

A receive on a GPU is a kernel that runs until its message is there, and whatever waits for the
whole device (a kernel that is compiled and timed, the allocator that gives memory back) waits for
it. So a receive is posted only where its message needs nothing more from this process. The first
gradient does: it follows from the hidden states that this stage is still to send.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .stage_groups import StageGroups

AHEAD = 1


def connect(groups: StageGroups, device: torch.device) -> None:
    """Send one number over each way that messages take, boundary after boundary.

    NCCL connects two processes in the first send or receive between them, which waits for the
    other: in the order of a step every stage would wait for its neighbour.
    """
    one = torch.ones(1, device=device)
    for boundary in range(groups.stages - 1):
        before, after = groups.ranks[boundary : boundary + 2]
        if groups.stage == boundary:
            dist.send(one, after, group=groups.down)
            dist.recv(one, after, group=groups.up)
        elif groups.stage == boundary + 1:
            dist.recv(one, before, group=groups.down)
            dist.send(one, before, group=groups.up)


class Messages:
    """The messages of one step between this process and the neighbours in its column.

    ``form``: shape of a hidden state [B, S, M]; every micro-batch has the same. ``count``:
    micro-batches. ``backward``: gradients come back.
    """

    def __init__(
        self,
        groups: StageGroups,
        form: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        count: int,
        backward: bool = True,
    ) -> None:
        self.groups = groups
        self.empty = lambda: torch.empty(form, dtype=dtype, device=device)
        before = None if groups.first else groups.ranks[groups.stage - 1]
        after = None if groups.last else groups.ranks[groups.stage + 1]
        self.before, self.after = before, after
        self.hidden = _Receiver(self.empty, before, groups.down, count)
        self.hidden.post()
        self.gradients = _Receiver(self.empty, after, groups.up, count if backward else 0)
        self.sent: deque[tuple[Any, Tensor]] = deque()

    def receive_hidden(self) -> Tensor:
        """The next micro-batch's hidden states from the stage before."""
        return self.hidden.take()

    def receive_gradient(self) -> Tensor:
        """The gradient of the next micro-batch's hidden states that this stage sent."""
        return self.gradients.take()

    def send_hidden(self, hidden: Tensor) -> None:
        self._send(hidden, self.after, self.groups.down)

    def send_gradient(self, gradient: Tensor) -> None:
        self._send(gradient, self.before, self.groups.up)

    def finish(self) -> None:
        """Wait until everything is sent."""
        while self.sent:
            self.sent.popleft()[0].wait()

    def _send(self, value: Tensor, to: int | None, group: Any) -> None:
        assert to is not None, "there is no stage there"
        value = value.detach().contiguous()
        self.sent.append((dist.isend(value, to, group=group), value))
        # either schedule has received what lies so far back, so this waits for nothing
        while len(self.sent) > 4 * (self.groups.stages + 2):
            self.sent.popleft()[0].wait()


class _Receiver:
    """``count`` messages from process ``source``, in order."""

    def __init__(self, empty: Any, source: int | None, group: Any, count: int) -> None:
        self.empty, self.source, self.group = empty, source, group
        self.left = count if source is not None else 0
        self.posted: deque[tuple[Any, Tensor]] = deque()

    def post(self) -> None:
        """Start receiving the next message, if there is one and none is being received."""
        while self.left and len(self.posted) < AHEAD:
            place = self.empty()
            work = dist.irecv(place, self.source, group=self.group)
            self.posted.append((work, place))
            self.left -= 1

    def take(self) -> Tensor:
        self.post()
        work, place = self.posted.popleft()
        work.wait()
        self.post()
        return place
