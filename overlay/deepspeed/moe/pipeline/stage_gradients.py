"""The gradients of a stage without ZeRO: every process has, and updates, the whole group."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from deepspeed.runtime.zero.flat_group import GroupGradients
from torch import Tensor


class WholeGradients(GroupGradients):
    """Sums every gradient in fp32 on this process; before the step the sums of all are added.

    ``copies``: the processes with the same parameters, where ``zero`` knows each process alone.
    """

    def __init__(self, zero: Any, i: int, share_of_each: float, copies: Any) -> None:
        super().__init__(zero, i, False, share_of_each)
        self.copies = copies

    def finish(self) -> Tensor:
        """The sum over all micro-batches and all copies."""
        self.finished = True
        if dist.get_world_size(group=self.copies) > 1:
            dist.all_reduce(self.sum, group=self.copies)
        return self.sum
