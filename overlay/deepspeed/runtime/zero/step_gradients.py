"""One parameter group whose gradients are summed locally and reduced once a step, by buckets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .flat_group import GroupGradients, put
from .int8_messages import Int8Exchange, Residual
from .int8_weights import share_changes


@dataclass
class Bucket:
    """Parameters that follow one another: elements ``first`` to ``last`` - 1 of the flat buffer.

    ``members`` are their places among the group's trained parameters.
    """

    first: int
    last: int
    members: list[int] = field(default_factory=list)


class StepGradients(GroupGradients):
    """Sums every gradient in fp32 on this process; :meth:`launch` reduces one bucket of the sum.

    ``dtype``: "same" as the weights, "fp32" or "int8", which is also for the new weights. A
    bucket's piece in each partition goes to that partition's owner alone, so a process sends about
    one copy of the gradients.
    """

    def __init__(
        self, zero: Any, i: int, share_of_each: float, dtype: str, bucket_size: int
    ) -> None:
        super().__init__(zero, i, False, share_of_each)
        self.dtype = torch.float32 if dtype == "fp32" else self.weights.dtype
        self.buckets = self._cut(bucket_size) if self.processes > 1 else []
        self.residual = None
        if dtype == "int8" and self.processes > 1:
            self.residual = Residual(self.sum)
        # (handle, message, where its result goes on the owner)
        self.started: list[tuple[Any, Tensor | None, Tensor | None]] = []

    def _cut(self, bucket_size: int) -> list[Bucket]:
        """Buckets of about ``bucket_size`` elements, in the order of the flat buffer."""
        buckets, at, member, full = [], 0, 0, True
        for param in self.ordered:
            if full:
                buckets.append(Bucket(at, at))
            at += param.numel()
            buckets[-1].last = at
            if param.requires_grad:
                buckets[-1].members.append(member)
                member += 1
            full = at - buckets[-1].first >= bucket_size
        return buckets

    def take(self) -> None:
        """Add the gradients that are left in the parameters; a missing one counts as 0."""
        put(self.places, self.params, self.share_of_each, add=True)

    def launch(self, bucket: Bucket) -> None:
        """Add the last gradients of ``bucket``, and start to reduce its sums."""
        places = [self.places[m] for m in bucket.members]
        params = [self.params[m] for m in bucket.members]
        put(places, params, self.share_of_each, add=True)
        pieces = self._pieces(bucket)
        if self.residual is not None:
            work = Int8Exchange(self.sum, pieces, self.residual, self.rank, self.process_group)
            self.started.append((work, None, None))
            return
        for owner, first, last in pieces:
            if first == last:
                continue
            part = self.sum[first:last]
            message = part.to(self.dtype)  # the sum itself where the dtype is fp32
            to = _global_rank(self.process_group, owner)
            work = dist.reduce(message, dst=to, group=self.process_group, async_op=True)
            self.started.append((work, message, part if owner == self.rank else None))

    def _pieces(self, bucket: Bucket) -> list[tuple[int, int, int]]:
        """(owner, first, last) for each process: its part of ``bucket``, perhaps empty."""
        cuts = []
        for owner in range(self.processes):
            first = max(bucket.first, owner * self.size)
            last = min(bucket.last, (owner + 1) * self.size)
            cuts.append((owner, first, max(first, last)))
        return cuts

    def receive(self) -> None:
        """Wait for the reductions that were started; this process's partition has their results."""
        for work, message, part in self.started:
            work.wait()
            if part is not None and message is not None and message.data_ptr() != part.data_ptr():
                part.copy_(message)
        self.started.clear()

    def fold(self) -> None:
        """After a reduction, go on summing: what others own was sent, and counts as 0 from now."""
        self.receive()
        if self.processes > 1:
            self.sum[: self.rank * self.size].zero_()
            self.sum[(self.rank + 1) * self.size :].zero_()

    def rescale(self, factor: float, overflow: bool) -> None:
        """Keep what int8 messages lost in the units of the next step's gradients."""
        if self.residual is not None and (factor != 1.0 or overflow):
            self.residual.rescale(factor)

    def share(self, partition: Tensor) -> None:
        """As the base class, or with int8 by what changed."""
        if self.residual is None:
            super().share(partition)
        else:
            share_changes(self.weights.detach(), partition, self.rank, self.process_group)

    def finish(self) -> Tensor:
        """The reduced sum of this process's partition; every bucket was launched before."""
        self.receive()
        self.finished = True
        return self.sum[self.rank * self.size :][: self.size]


def _global_rank(group: Any, rank: int) -> int:
    known = getattr(dist, "get_global_rank", None)  # since torch 1.13
    found: int = (known or dist.distributed_c10d._get_global_rank)(group, rank)
    return found
