"""How a message between stages travels: transports with the same methods.

NCCL's kernels occupy multiprocessors from the moment they are started until the message is there,
and a message between stages is awaited during most of a pass. Two H200s, 690M, an iteration
without communication: 1.117 s with cuBLASLt, 1.037 s with quack; with NCCL 1.206 s and 1.183 s
(docs/guide/pipeline.md, "On GPUs"). So on GPUs copy engines carry messages inside a host, and
between hosts they go through pinned memory and gloo: neither uses a multiprocessor.

``send(value, to, way)`` and ``receive(place, source, way)`` start a message and return something
with ``wait()``, after which the tensor may be used by the current stream. ``to`` and ``source`` are
stages. ``way`` is :data:`DOWN`, to the next stage, or :data:`UP`. Messages of one way between two
stages arrive in order.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.gshard.all_to_all import group_name
from deepspeed.moe.kernels import copy_engines
from torch import Tensor

from ..stage_groups import StageGroups
from .host_transport import HostTransport

DOWN, UP = "down", "up"
SEND, RECEIVE = "send", "receive"
WORDS = "messages of stages go through the host's memory"


class NoInbox(RuntimeError):
    """The GPUs of a column cannot write to each other's memory."""


class GroupTransport:
    """Through the process groups ``down`` and ``up``: gloo on CPUs; NCCL where it is asked for.

    The ways have a group each: on one NCCL communicator, whose operations run in order, two
    neighbours that both send would wait for each other.
    """

    def __init__(self, groups: StageGroups, device: torch.device) -> None:
        self.ranks, self.groups = groups.ranks, {DOWN: groups.down, UP: groups.up}
        self.name = str(dist.get_backend(groups.down))
        self._connect(groups.stage, torch.ones(1, device=device))

    def _connect(self, stage: int, one: Tensor) -> None:
        """Send one number over each way, boundary after boundary.

        NCCL connects two processes in the first message between them, which waits for the other:
        in the order of a step every stage would wait for its neighbour.
        """
        for boundary in range(len(self.ranks) - 1):
            if stage == boundary:
                self.send(one, stage + 1, DOWN).wait()
                self.receive(one, stage + 1, UP).wait()
            elif stage == boundary + 1:
                self.receive(one, boundary, DOWN).wait()
                self.send(one, boundary, UP).wait()

    def prepare(self, size: int) -> None:
        """Make room for messages of ``size`` bytes; all processes of a column call it together."""

    def send(self, value: Tensor, to: int, way: str) -> Any:
        return dist.isend(value, self.ranks[to], group=self.groups[way])

    def receive(self, place: Tensor, source: int, way: str) -> Any:
        return dist.irecv(place, self.ranks[source], group=self.groups[way])


class CopyEngineTransport:
    """Between GPUs of one host, by copy engines (deepspeed/moe/kernels/copy_engines.py)."""

    name = "copy engines"

    def __init__(self, groups: StageGroups) -> None:
        self.groups = {DOWN: groups.down, UP: groups.up}
        self.boxes: dict[tuple[str, str], copy_engines.Inbox] = {}
        self.size = 0

    def prepare(self, size: int) -> None:
        """See :meth:`GroupTransport.prepare`. Raises NoInbox where the GPUs cannot do it."""
        if size <= self.size:
            return
        for way, group in self.groups.items():
            inbox = copy_engines.inbox_for(group_name(group), group, size, WORDS)
            if inbox is None:
                raise NoInbox("no messages by copy engines; train with DSMOE_KERNELS=nccl")
            for role in (SEND, RECEIVE):  # in streams of their own: a stage between two does both
                box = self.boxes[way, role] = copy.copy(inbox)
                box.stream = torch.cuda.Stream()
        self.size = size

    def send(self, value: Tensor, to: int, way: str) -> Any:
        return self.boxes[way, SEND].swap([to], [[value]], [], [])

    def receive(self, place: Tensor, source: int, way: str) -> Any:
        return self.boxes[way, RECEIVE].swap([source], [], [[place]], [])


def choose(groups: StageGroups, device: torch.device) -> Any:
    """The transport of this process's column; all its processes call it together."""
    if not groups.host_down or device.type != "cuda":
        return GroupTransport(groups, device)
    if copy_engines.problem(groups.down) is None:
        engines = CopyEngineTransport(groups)
        with contextlib.suppress(NoInbox):  # all of the column agree; inbox_for said why
            engines.prepare(1)
            return engines
    return HostTransport(groups, device)
