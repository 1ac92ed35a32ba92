"""The optimizer of a stage: ZeRO-0 or 1 inside the stage, one norm and one step over all stages."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.ops.adafactor.optimizer import Adafactor
from deepspeed.ops.adafactor.tags import TAG_ATTRIBUTE
from deepspeed.runtime.zero.flat_gradients import FlatGradientsOptimizer
from deepspeed.runtime.zero.flat_settings import FlatSettings
from deepspeed.runtime.zero.step_gradients import step_gradients
from deepspeed.runtime.zero.step_reduction import StepReduction
from torch import Tensor

from .stage_gradients import WholeGradients
from .stage_groups import StageGroups
from .stage_model import TIED
from .tied import add_other_copy


class StageOptimizer(FlatGradientsOptimizer):
    """See the module. ``groups`` are those of the pipeline, ``partitioned`` says ZeRO-1.

    Takes the arguments of ``FP16_DeepSpeedZeroOptimizer`` besides. Gradients are summed in fp32 on
    each process and reduced once a step, inside the stage.
    """

    def __init__(
        self, *args: Any, groups: StageGroups, partitioned: bool, flat: FlatSettings, **options: Any
    ) -> None:
        self.groups, self.partitioned = groups, partitioned
        if not partitioned:
            options.update(dp_process_group=groups.alone)
            if options.get("has_moe_layers"):
                options.update(expert_data_parallel_group=groups.alone)
        super().__init__(*args, flat=flat, **options)
        self.is_tied = [group.get("name") == TIED for group in self.optimizer.param_groups]
        self._own_channel()

    def make_gradients(self, flat: FlatSettings) -> tuple[list[Any], StepReduction | None]:
        """The buffers of all groups, and what starts their reductions (ZeRO-1)."""
        count, share = len(self.single_partition_of_fp32_groups), 1.0 / self.groups.width
        if not self.partitioned:
            experts = getattr(self, "is_moe_param_group", [False] * count)
            copies = [self.groups.expert_data if e else self.groups.data for e in experts]
            return [WholeGradients(self, i, share, copies[i]) for i in range(count)], None
        made = step_gradients(self, share, flat)
        return list(made), StepReduction(made, self.groups.data)

    def backward_from(self, outputs: list[Tensor], gradients: list[Tensor | None]) -> None:
        """The backward pass of a micro-batch from ``outputs``; add what it gives to the sums.

        ``gradients`` are those of the outputs; None for a scalar, which counts with the loss scale.
        """
        scaled = [
            o.float() * self.loss_scale if g is None else o for o, g in zip(outputs, gradients)
        ]
        last = self.is_gradient_accumulation_boundary
        self.new_sums()
        if self._reduction is not None:
            self._reduction.begin(last)
        torch.autograd.backward(scaled, gradients)
        if self._reduction is not None:
            self._reduction.end(last)
            return
        for group in self._gradients:
            group.take()

    def complete(self, gradients: list[Tensor]) -> None:
        """Add what other stages have of the same parameters."""
        for gradient, tied in zip(gradients, self.is_tied):
            if tied:
                add_other_copy(gradient, self.groups, self.partitioned)

    def norm_of(self, gradients: list[Tensor]) -> float:
        """2-norm over all stages; each expert and each tied copy counts once."""
        once = [g for i, g in enumerate(gradients) if self.writes(i)]
        total = self.squares(once)
        dist.all_reduce(total)
        return math.sqrt(total.item())

    def flat_order(self, i: int) -> list[Tensor]:
        """The parameters of group ``i`` in the order of the flat weights."""
        return list(self._gradients[i].ordered)

    @torch.no_grad()
    def share_masters(self) -> None:
        """Make the weights of all processes of the stage from the masters."""
        for partition, group in zip(self.single_partition_of_fp32_groups, self._gradients):
            group.share(partition)

    def writes(self, i: int) -> bool:
        """Whether this process's partition of group ``i`` is the one that stands for its copies:
        in the norm, and in a checkpoint."""
        if self.is_tied[i] and not self.groups.first:
            return False
        if self.partitioned:
            return True
        experts = getattr(self, "is_moe_param_group", [])
        group = self.groups.expert_data if experts and experts[i] else self.groups.data
        return dist.get_rank(group=group) == 0

    def _own_channel(self) -> None:
        """AdaFactor sums over parts of the tied embedding in a message of its own, which is the
        same in both stages, so that the sums are too."""
        if not isinstance(self.optimizer, Adafactor) or not self.partitioned:
            return
        for partition, tied in zip(self.single_partition_of_fp32_groups, self.is_tied):
            tag = getattr(partition, TAG_ATTRIBUTE, None)
            if tied and tag is not None:
                tag.process_group = self.groups.tied
