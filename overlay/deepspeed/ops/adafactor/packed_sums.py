"""The messages between the ranks that hold parts of one unit: two packed all-reduces a step.

All partitions over one process group share them. The tags alone determine the layout: every rank
of the group sends the same number of elements in the same order, even a rank that holds no part of
a cut unit, or only padding. The ranks therefore always make the same calls.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .tags import PartitionTag
from .update import CutUpdate


class Channel:
    """The cut units of all partitions over one process group, of one dtype and device."""

    def __init__(self, process_group: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.process_group = process_group
        self.dtype = dtype
        self.device = device
        self.sum_numel = 0
        self.norm_numel = 0
        self.work: list[tuple[CutUpdate, int, int]] = []

    def add(self, tag: PartitionTag, updates: list[CutUpdate]) -> None:
        """Reserve room for all cut units of a partition's group; ``updates`` are this rank's."""
        for update in updates:
            place = self.sum_numel + update.cut.offset
            self.work.append((update, place, self.norm_numel + update.cut.index))
        self.sum_numel += tag.message_numel
        self.norm_numel += len(tag.cuts)

    def start(self) -> None:
        """Fill the first message and send it; does not wait."""
        self.sums = self._zeros(self.sum_numel)
        for update, place, _ in self.work:
            update.sums(self.sums[place : place + update.cut.numel])
        self.pending = self._all_reduce(self.sums)

    def finish(self) -> None:
        """Receive the first message, exchange the second, write the new values."""
        self.pending.wait()
        norms = self._zeros(self.norm_numel)
        for update, place, index in self.work:
            message = self.sums[place : place + update.cut.numel]
            update.direct(message, norms[index : index + 1])
        self._all_reduce(norms).wait()
        for update, _, index in self.work:
            update.apply(norms[index : index + 1])

    def _zeros(self, numel: int) -> Tensor:
        return torch.zeros(numel, dtype=self.dtype, device=self.device)

    def _all_reduce(self, buffer: Tensor) -> Any:
        return dist.all_reduce(buffer, group=self.process_group, async_op=True)


class PackedSums:
    """The channels of one step, in the order of the parameter groups."""

    def __init__(self) -> None:
        self._channels: dict[tuple[int, torch.dtype, torch.device], Channel] = {}

    def add(
        self,
        tag: PartitionTag,
        dtype: torch.dtype,
        device: torch.device,
        updates: list[CutUpdate],
    ) -> None:
        """Add one partition: its tag, its messages' dtype and device, its cut units."""
        if not tag.cuts:
            return
        key = (id(tag.process_group), dtype, device)
        if key not in self._channels:
            self._channels[key] = Channel(tag.process_group, dtype, device)
        self._channels[key].add(tag, updates)

    def start(self) -> None:
        """Send every channel's first message."""
        for channel in self._channels.values():
            channel.start()

    def finish(self) -> None:
        """Finish every channel's update."""
        for channel in self._channels.values():
            channel.finish()
