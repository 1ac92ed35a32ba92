"""What ZeRO-1 and 2 with ``flat_gradients`` keep in memory, step by step, on meta tensors.

Follows deepspeed/runtime/zero/flat_gradients.py (overlay/); zero.py has the pinned DeepSpeed's way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsmoe.benchmark.plan.estimate import GRADIENTS_BY_BLOCK
from dsmoe.benchmark.plan.ledger import Ledger
from dsmoe.benchmark.plan.zero import BUCKETS, GRADIENTS, Group


class Flat:
    """The buffers of stage 1 or 2 over ``groups`` with ``optimizer`` on their fp32 partitions."""

    def __init__(
        self,
        groups: list[Group],
        optimizer: torch.optim.Optimizer,
        config: dict[str, Any],
        ledger: Ledger,
    ) -> None:
        self.groups, self.optimizer = groups, optimizer
        flat = config["zero_optimization"]["flat_gradients"]
        reduce = flat.get("reduce") if isinstance(flat, dict) else None
        self.once = reduce == "step"
        self.dtype = flat.get("dtype", "same") if isinstance(flat, dict) else "same"
        self.partitioned = reduce == "micro_batch" or (
            reduce is None and config["zero_optimization"]["stage"] == 2
        )
        self.sums: list[Tensor] = []
        self.lost: list[Tensor] = []
        self.messages: list[Tensor] = []
        for group in groups:
            each = self.partitioned and group.parts > 1
            with ledger.kind(GRADIENTS):
                size = group.part if each else group.numel
                self.sums.append(torch.empty(size, dtype=torch.float32, device="meta"))
                if self.dtype == "int8" and group.parts > 1:  # what rounding took
                    self.lost.append(torch.empty(size, dtype=torch.float32, device="meta"))
            if each:
                dtype = torch.float32 if self.dtype == "fp32" else group.dtype
                with ledger.kind(BUCKETS):
                    for size in (group.numel, group.part):
                        self.messages.append(torch.empty(size, dtype=dtype, device="meta"))
            for param in group.params:
                param.register_post_accumulate_grad_hook(lambda p: ledger.move(p.grad, GRADIENTS))

    def backward(self, loss: Tensor, boundary: bool) -> None:
        """The backward pass of a micro-batch; then every gradient is added and gone."""
        loss.backward()
        for group in self.groups:
            for param in group.params:
                param.grad = None

    def step(self) -> None:
        """The sums are the gradients that the optimizer sees."""
        for group, total in zip(self.groups, self.sums):
            first = 0 if total.numel() == group.part else group.rank * group.part
            group.master.grad = total[first : first + group.part]
        self.optimizer.step()
        for group in self.groups:
            group.master.grad = None

    def reductions(self, micro_batches: int, device: str) -> dict[str, int]:
        """Bytes handed to the collectives of gradients and weights in a step, by kind."""
        shared = [group for group in self.groups if group.parts > 1]
        part = sum(group.part * group.flat.element_size() for group in shared)
        if self.once and self.dtype == "int8":  # to others alone; a scale for each block
            block = 260 / 256
            others = sum(group.numel - group.part for group in shared)
            own = sum(group.part for group in shared)
            return {GRADIENTS_BY_BLOCK: int(others * block), "all-gather": int(own * block)}
        if self.once:  # each piece to its owner, in the dtype of the weights or in fp32
            wide = 4 if self.dtype == "fp32" else 0
            whole = sum(p.numel() * (wide or p.element_size()) for g in shared for p in g.params)
            return {"reduce": whole, "all-gather": part}
        times = micro_batches if self.partitioned else 1
        narrow = shared and self.partitioned and self.dtype == "same"
        size = shared[0].flat.element_size() if narrow else 4
        # gloo has no reduce-scatter: it sums the whole
        kind = "reduce-scatter" if device == "cuda" else "all-reduce"
        return {
            kind: sum(group.numel for group in shared) * size * times,
            "all-gather": part,
        }
