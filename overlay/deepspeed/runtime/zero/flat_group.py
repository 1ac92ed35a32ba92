"""The gradients of one parameter group in a flat fp32 buffer (flat_gradients.py)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.ops.adafactor.optimizer import STAYS_ATTRIBUTE
from deepspeed.utils.neutral import has_triton
from torch import Tensor

_LARGE = 2**18  # elements; below, launching a kernel dominates the time
# Their names since torch 1.13, and before.
_all_gather = getattr(dist, "all_gather_into_tensor", None) or dist._all_gather_base
_reduce_scatter_flat = getattr(dist, "reduce_scatter_tensor", None) or dist._reduce_scatter_base


class GroupGradients:
    """The gradients of one parameter group; each process's are weighted by ``share_of_each``."""

    def __init__(
        self, zero: Any, i: int, partitioned: bool, share_of_each: float, wide: bool = False
    ) -> None:
        """``partitioned``: every micro-batch is reduced; ``wide``: in fp32 messages."""
        self.process_group = zero.real_dp_process_group[i]
        self.processes = dist.get_world_size(group=self.process_group)
        self.rank = dist.get_rank(group=self.process_group)
        self.share_of_each = share_of_each
        self.ordered, self.weights = _names(zero, i)
        self.params = [p for p in self.ordered if p.requires_grad]
        numel = self.weights.numel()
        self.size = numel // self.processes
        # every micro-batch is reduced, or only the sum of all of them
        self.each = partitioned and self.processes > 1
        self.sum = torch.zeros(
            self.size if self.each else numel, dtype=torch.float32, device=self.weights.device
        )
        setattr(self.sum, STAYS_ATTRIBUTE, True)
        dtype = torch.float32 if wide else self.weights.dtype
        self.send = torch.zeros_like(self.weights, dtype=dtype) if self.each else self.sum
        self.received = torch.empty_like(self.send[: self.size]) if self.each else self.sum
        self.places = _views(self.send, self.ordered)
        self.pending: Any = None
        self.finished = False

    def start(self) -> None:
        """Clear the sum if its step is finished."""
        if self.finished:
            self.sum.zero_()
            self.finished = False

    def take(self) -> None:
        """Move the gradients of a micro-batch out of the parameters; a missing one counts as 0."""
        if not self.each:
            put(self.places, self.params, self.share_of_each, add=True)
            return
        self.receive()
        put(self.places, self.params, self.share_of_each, add=False)
        self.pending = _reduce_scatter(self.received, self.send, self.rank, self.process_group)

    def finish(self) -> Tensor:
        """The sum over all micro-batches since the last call, of this process's partition."""
        self.receive()
        self.finished = True
        if self.each or self.processes == 1:
            return self.sum
        part = self.sum[self.rank * self.size :][: self.size]
        _reduce_scatter(part, self.sum, self.rank, self.process_group).wait()
        return part

    def share(self, partition: Tensor) -> None:
        """Copy the new fp32 ``partition`` to the weights; gather those of the other processes."""
        # detached: torch 1.10 forbids a collective to write to views of a tensor with history
        weights = self.weights.detach()
        own = weights[self.rank * self.size :][: self.size]
        own.copy_(partition)
        if self.processes == 1:
            return
        self.gather(weights)

    def gather(self, whole: Tensor) -> None:
        """Fill ``whole``, one piece a process, from each process's own piece of it."""
        parts = list(whole.split(whole.numel() // self.processes))
        if dist.get_backend(self.process_group) == "nccl":
            _all_gather(whole, parts[self.rank], group=self.process_group)
        else:
            dist.all_gather(parts, parts[self.rank], group=self.process_group)

    def rescale(self, factor: float, overflow: bool) -> None:
        """The loss scale changed by ``factor`` after a step, which ``overflow`` skipped."""

    def receive(self) -> None:
        """Add the result of the last reduction, if one was started."""
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
            _add(self.sum, self.received, 1.0)


def _names(zero: Any, i: int) -> tuple[list[Tensor], Tensor]:
    """Parameters in the order of the flat weights, and these; either base's names."""
    if hasattr(zero, "round_robin_bit16_groups"):
        return zero.round_robin_bit16_groups[i], zero.bit16_groups_flat[i]
    return zero.round_robin_fp16_groups[i], zero.fp16_groups_flat[i]


def _views(flat: Tensor, params: list[Tensor]) -> list[Tensor]:
    """A view of ``flat`` for each trained parameter, in its shape."""
    views, offset = [], 0
    for param in params:
        if param.requires_grad:
            views.append(flat[offset : offset + param.numel()].view(param.shape))
        offset += param.numel()
    return views


@torch.no_grad()
def put(places: list[Tensor], params: list[Tensor], factor: float, add: bool) -> None:
    """places = factor * gradients, or += with ``add``; the parameters lose their gradients."""
    for place, param in zip(places, params):
        gradient, param.grad = param.grad, None
        if gradient is None:
            if not add:
                place.zero_()
        elif add:
            _add(place, gradient, factor)
        elif factor == 1.0:
            place.copy_(gradient)
        else:
            torch.mul(gradient, factor, out=place)


def _add(place: Tensor, gradient: Tensor, factor: float) -> None:
    """place += factor * gradient. For two dtypes torch's own kernel reaches half the bandwidth."""
    large = place.is_cuda and place.numel() >= _LARGE and gradient.dtype != place.dtype
    if large and gradient.is_contiguous() and has_triton():
        from .add_kernel import add_

        add_(place, gradient, factor)
    else:
        place.add_(gradient, alpha=factor)


def _reduce_scatter(part: Tensor, whole: Tensor, rank: int, group: Any) -> Any:
    """Start part = this process's share of the sum of ``whole``; gloo reduces the whole instead."""
    if dist.get_backend(group) == "nccl":
        return _reduce_scatter_flat(part, whole, group=group, async_op=True)
    work = dist.all_reduce(whole, group=group, async_op=True)
    return _CopyAfter(work, part, whole[rank * part.numel() :][: part.numel()])


class _CopyAfter:
    """A handle that copies one tensor to another when its work is done."""

    def __init__(self, work: Any, target: Tensor, source: Tensor) -> None:
        self.work, self.target, self.source = work, target, source

    def wait(self) -> None:
        self.work.wait()
        if self.target.data_ptr() != self.source.data_ptr():
            self.target.copy_(self.source)
