"""One parameter group whose gradients are summed locally and reduced once a step, by buckets."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, Iterator

import torch
import torch.distributed as dist
from deepspeed.utils.torch_compat import get_global_rank
from torch import Tensor

from .exchanged_sums import Exchange, Int8Messages, SumsByHosts, WideMessages
from .flat_group import GroupGradients, put
from .flat_settings import FlatSettings
from .host_levels import Levels, levels_of
from .int8_messages import Residual
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

    ``flat.dtype``: "same" as the weights, "fp32" or "int8", which is also for the new weights and,
    where ``levels`` has several processes of each host, for what goes between hosts alone. A
    bucket's piece in each partition goes to that partition's owner alone, so a process sends about
    one copy of the gradients; with ``levels`` a host sends each of them once (exchanged_sums.py).
    """

    def __init__(
        self,
        zero: Any,
        i: int,
        share_of_each: float,
        flat: FlatSettings,
        levels: Levels | None = None,
    ) -> None:
        super().__init__(zero, i, False, share_of_each)
        self.dtype = torch.float32 if flat.dtype == "fp32" else self.weights.dtype
        self.levels = levels
        self.buckets = self._cut(flat.bucket_size) if self.processes > 1 else []
        self.residual = None
        self.messages: Any = WideMessages(self.dtype)
        if flat.dtype == "int8" and self.processes > 1:
            self.residual = Residual(self.sum)
            self.messages = Int8Messages(self.residual)
        # (handle, message, where its result goes on the owner)
        self.started: list[tuple[Any, Tensor | None, Tensor | None]] = []
        self.stream = None
        if self.sum.is_cuda and levels is not None:
            self.stream = torch.cuda.Stream(self.sum.device)

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
        if self.levels is not None and self.levels.inside is not None:
            self._launch_by_hosts(pieces, self.levels)
            return
        if self.levels is not None or self.residual is not None:
            parts = [(first, self.sum[first:last]) for _, first, last in pieces]
            work = Exchange(parts, self.rank, self.messages, self.process_group)
            self.started.append((work, None, None))
            return
        for owner, first, last in pieces:
            if first == last:
                continue
            part = self.sum[first:last]
            message = part.to(self.dtype)  # the sum itself where the dtype is fp32
            to = get_global_rank(self.process_group, owner)
            work = dist.reduce(message, dst=to, group=self.process_group, async_op=True)
            self.started.append((work, message, part if owner == self.rank else None))

    def _launch_by_hosts(self, pieces: list[tuple[int, int, int]], levels: Levels) -> None:
        """Start the sums inside this host, and those between hosts of the bucket before.

        On a GPU a stream of its own waits for the first and starts the second at once.
        """
        with self._beside():
            if self.started:
                self.started[-1][0].advance()
            near = WideMessages(self.dtype)
            sums = SumsByHosts(self.sum, pieces, levels, near, self.messages)
            self.started.append((sums, None, None))
            if self.stream is not None:
                sums.advance()

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        """On a GPU, on the stream of the exchange, after what was started so far."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.sum.device))
        with torch.cuda.stream(self.stream):
            yield

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
        with self._beside():
            for work, message, part in self.started:
                work.wait()
                if part is None or message is None or message.data_ptr() == part.data_ptr():
                    continue
                part.copy_(message)
        if self.stream is not None:
            torch.cuda.current_stream(self.sum.device).wait_stream(self.stream)
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
            return
        share_changes(self.weights.detach(), partition, self.rank, self.gather)

    def gather(self, whole: Tensor) -> None:
        """As the base class, or between hosts first and then inside each."""
        if self.levels is None:
            super().gather(whole)
        else:
            self.levels.gather(whole)

    def finish(self) -> Tensor:
        """The reduced sum of this process's partition; every bucket was launched before."""
        self.receive()
        self.finished = True
        return self.sum[self.rank * self.size :][: self.size]


def step_gradients(zero: Any, share_of_each: float, flat: FlatSettings) -> list[StepGradients]:
    """The gradients of every group of ``zero``; all processes of the run call it together."""
    groups = zero.real_dp_process_group
    wanted = flat.hierarchical
    if wanted is None:
        wanted = dist.get_backend() != "nccl"
    levels = levels_of(list(groups)) if wanted else [None] * len(groups)
    return [StepGradients(zero, i, share_of_each, flat, at) for i, at in enumerate(levels)]
