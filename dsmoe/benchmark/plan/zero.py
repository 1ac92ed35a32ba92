"""What ZeRO-0, 1 and 2 of the pinned DeepSpeed keep in memory, step by step, on meta tensors.

Follows deepspeed/runtime/zero/stage2.py at bd3ebd as patched (stages 1 and 2, contiguous
gradients) and engine.py (stage 0), buffer by buffer; the optimizer is the real one. No values are
computed: every tensor is on device ``meta`` and is only counted (ledger.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsmoe.benchmark.plan.ledger import Ledger

PARAMETERS = "parameters"
MASTER = "fp32 weights"
STATE = "optimizer state"
GRADIENTS = "gradients"
BUCKETS = "reduce buckets"


def _grad(param: Tensor) -> Tensor:
    """The gradient of ``param``, after its backward pass."""
    assert param.grad is not None
    return param.grad


class Group:
    """An optimizer group: its parameters, flat and cut over the processes of ``process_group``."""

    def __init__(self, params: list[nn.Parameter], process_group: Any, ledger: Ledger) -> None:
        self.params = params
        self.process_group = process_group
        self.parts = dist.get_world_size(process_group)
        self.rank = dist.get_rank(process_group)
        self.dtype = params[0].dtype
        total = sum(p.numel() for p in params)
        aligned = 2 * self.parts
        self.numel = -(-total // aligned) * aligned
        with ledger.kind(PARAMETERS):
            flat = torch.empty(self.numel, dtype=self.dtype, device="meta")
        at = 0
        for param in params:
            param.data = flat[at : at + param.numel()].view_as(param)
            at += param.numel()
        self.flat = flat
        self.part = self.numel // self.parts
        with ledger.kind(MASTER):
            self.master = torch.empty(self.part, dtype=torch.float32, device="meta")
        self.master.requires_grad = True
        first, last = self.rank * self.part, (self.rank + 1) * self.part
        self.own: list[tuple[nn.Parameter, int, int]] = []
        at = 0
        for param in params:
            begin, end = max(at, first), min(at + param.numel(), last)
            if begin < end:
                self.own.append((param, begin - at, end - at))
            at += param.numel()


class Zero:
    """The buffers of stage 1 or 2 over ``groups`` with ``optimizer`` on their fp32 partitions."""

    def __init__(
        self,
        groups: list[Group],
        optimizer: torch.optim.Optimizer,
        config: dict[str, Any],
        ledger: Ledger,
    ) -> None:
        zero = config["zero_optimization"]
        self.groups, self.optimizer, self.ledger = groups, optimizer, ledger
        self.partition_gradients = zero["stage"] == 2
        self.bucket = zero["reduce_bucket_size"]
        self.overlap = zero["overlap_comm"]
        self.boundary = False
        self.averaged: list[Tensor] | None = None
        self._own = {id(param) for group in groups for param, _, _ in group.own}
        self._in_bucket: list[nn.Parameter] = []
        self._filled = 0
        self._buffers: list[Tensor] = []
        self._grads: Tensor | None = None
        self._at = 0
        for group in groups:
            for param in group.params:
                param.register_post_accumulate_grad_hook(self._made)

    def backward(self, loss: Tensor, boundary: bool) -> None:
        """The backward pass of a micro-batch and what follows it."""
        self.boundary = boundary
        self._buffers = []
        with self.ledger.kind(BUCKETS):
            for _ in range(2 if self.overlap else 1):
                size, dtype = self.bucket, self.groups[0].dtype
                self._buffers.append(torch.empty(size, dtype=dtype, device="meta"))
        loss.backward()
        if not self.partition_gradients and not boundary:
            return
        if not self.partition_gradients and not self.overlap:
            for group in self.groups:
                for param in group.params:
                    self._ready(param)
        self._reduce()
        new = [_grad(param).view(-1)[a:b] for group in self.groups for param, a, b in group.own]
        self.averaged = new if self.averaged is None else self.averaged
        self._buffers, self._grads, self._at = [], None, 0
        for group in self.groups:
            for param in group.params:
                param.grad = None

    def _made(self, param: nn.Parameter) -> None:
        if self.partition_gradients or (self.overlap and self.boundary):
            self._ready(param)
        else:
            self.ledger.move(_grad(param), GRADIENTS)

    def _ready(self, param: nn.Parameter) -> None:
        if self._filled + param.numel() > self.bucket:
            self._reduce()
        if param.numel() <= self.bucket:
            place = self._buffers[0].narrow(0, self._filled, param.numel())
            _grad(param).data = place.view_as(_grad(param))
        self._filled += param.numel()
        self._in_bucket.append(param)

    def _reduce(self) -> None:
        for param in self._in_bucket:
            if id(param) not in self._own:
                param.grad = None
                continue
            if self._grads is None:
                total = sum(p.numel() for group in self.groups for p, _, _ in group.own)
                with self.ledger.kind(GRADIENTS):
                    self._grads = torch.empty(total, dtype=param.dtype, device="meta")
            place = self._grads.narrow(0, self._at, param.numel())
            _grad(param).data = place.view_as(_grad(param))
            self._at += param.numel()
        self._in_bucket, self._filled = [], 0

    def step(self) -> None:
        """The optimizer step: overflow check, norm, fp32 gradients, update."""
        assert self.averaged is not None
        for grad in self.averaged:
            grad.float()
        del grad
        left = list(self.averaged)
        self.averaged = None
        for group in self.groups:
            grads, left = left[: len(group.own)], left[len(group.own) :]
            for grad in grads:
                grad.double()
            del grad  # a view that would keep the whole buffer
            short = group.part - sum(piece.numel() for piece in grads)
            if short:
                grads.append(torch.empty(short, dtype=group.dtype, device="meta"))
            with self.ledger.kind(GRADIENTS):
                group.master.grad = torch.cat(grads).float()
        del grads
        self.optimizer.step()
        for group in self.groups:
            group.master.grad = None


class Plain:
    """Stage 0: whole gradients, reduced through a flat copy; fp32 weights beside 16-bit ones."""

    def __init__(
        self,
        groups: list[Group],
        optimizer: torch.optim.Optimizer,
        masters: list[Tensor],
        ledger: Ledger,
    ) -> None:
        self.groups, self.optimizer, self.masters, self.ledger = groups, optimizer, masters, ledger
        for group in groups:
            for param in group.params:
                param.register_post_accumulate_grad_hook(lambda p: ledger.move(_grad(p), GRADIENTS))

    def backward(self, loss: Tensor, boundary: bool) -> None:
        loss.backward()
        if boundary:
            for group in self.groups:
                if group.parts > 1:
                    torch.cat([_grad(param).view(-1) for param in group.params])

    def step(self) -> None:
        params = [param for group in self.groups for param in group.params]
        if self.masters:
            with self.ledger.kind(GRADIENTS):
                for param, master in zip(params, self.masters):
                    master.grad = _grad(param).float()
        self.optimizer.step()
        for tensor in [*params, *self.masters]:
            tensor.grad = None
