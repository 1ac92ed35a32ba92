"""ZeRO-1/2 with fp32 gradient accumulation in flat buffers and no hooks in the backward pass.

DeepSpeed's own stage2.py handles every parameter's gradient separately, in a hook: a copy into a
bucket, one reduction to each owner, a copy out of it, then an addition in 16 bit. Here the
gradients of a micro-batch are processed together, after the backward pass:

- a group whose partition is the whole group (one process, or experts that no other process holds)
  adds them to its fp32 buffer in one pass over the memory;
- stage 2 copies them into one flat buffer in the model's dtype, divided by the number of processes,
  and sums that by one reduce-scatter, which overlaps with the next micro-batch; the result, this
  process's partition, is added to its fp32 buffer;
- stage 1 adds them in fp32 and reduces once, before the step, in fp32.

The buffer is the gradient that the optimizer reads, without another copy. A step waits for the
device once, for the norm. Results equal those of stage2.py except for rounding (less here, since
sums over micro-batches are in fp32), and checkpoints are interchangeable.

``{"zero_optimization": {"flat_gradients": true}}`` enables it; it needs 4 bytes of memory for each
element of the partition (stage 1: of the group). Instead of ``true`` a mapping says when to reduce
(flat_settings.py). ``"reduce": "step"``, for both stages, sums all micro-batches locally, in 4
bytes for each element of the group, and reduces the sums once, in the model's dtype unless
``dtype`` is given, bucket by bucket beside the last backward pass (step_reduction.py); where hosts
have several processes, inside each host first (exchanged_sums.py). Then what a process sends does
not grow with the number of micro-batches. ``"reduce": "micro_batch"`` is for
both stages what ``true`` is for stage 2.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.stage2 import FP16_DeepSpeedZeroOptimizer
from torch import Tensor

from .flat_group import GroupGradients
from .flat_settings import KEY, PLAIN, FlatSettings, flat_settings
from .step_gradients import step_gradients
from .step_reduction import StepReduction

_NORM_ELEMENTS = 2**24


def zero_optimizer(config: dict[str, Any]) -> Callable[..., FP16_DeepSpeedZeroOptimizer]:
    """What makes the optimizer for ZeRO-1/2 that a DeepSpeed configuration asks for.

    Raises:
        ValueError: for a value of ``flat_gradients`` that is none.
    """
    settings = flat_settings(config)
    if settings is None:
        return FP16_DeepSpeedZeroOptimizer
    return functools.partial(FlatGradientsOptimizer, flat=settings)


def check(engine: Any) -> None:
    """Refuse ``flat_gradients`` where ``engine`` would not use it.

    Raises:
        ValueError: at ZeRO stage 0 or 3, and with ``legacy_stage1``.
    """
    stage = engine.zero_optimization_stage()
    legacy = stage == 1 and engine.zero_legacy_stage1()
    settings = flat_settings(engine._config._param_dict)
    if settings is not None and (stage not in (1, 2) or legacy):
        found = "legacy_stage1" if legacy else f"stage {stage}"
        raise ValueError(
            f"zero_optimization.{KEY} is true with {found}; expected stage 1 or 2 without"
            f" legacy_stage1: remove {KEY}"
        )


class FlatGradientsOptimizer(FP16_DeepSpeedZeroOptimizer):
    """See the module. Takes the arguments of ``FP16_DeepSpeedZeroOptimizer``, and ``flat``.

    Raises:
        ValueError: with CPU offload or model parallelism, which this class does not support.
    """

    def __init__(self, *args: Any, flat: FlatSettings = PLAIN, **options: Any) -> None:
        for option in ("cpu_offload", "mpu"):
            if options.get(option):
                raise ValueError(
                    f"zero_optimization.{KEY} is true and {option} is set; expected one of the two:"
                    f" remove {KEY}"
                )
        super().__init__(*args, **options)
        self._gradients: list[GroupGradients]
        self._reduction: StepReduction | None
        self._gradients, self._reduction = self.make_gradients(flat)

    def make_gradients(self, flat: FlatSettings) -> tuple[list[Any], StepReduction | None]:
        """The buffers of all groups, and what starts their reductions ("reduce": "step")."""
        shared = dist.get_world_size(group=self.dp_process_group)
        groups = range(len(self.single_partition_of_fp32_groups))
        if flat.reduce == "step":
            made = step_gradients(self, 1.0 / shared, flat)
            return list(made), StepReduction(made, self.dp_process_group)
        each = self.partition_gradients if flat.reduce is None else True
        wide = flat.dtype == "fp32"
        return [GroupGradients(self, i, each, 1.0 / shared, wide) for i in groups], None

    def create_reduce_and_remove_grad_hooks(self) -> None:
        """Makes no hooks: gradients are processed after the backward pass."""

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Backward pass of one micro-batch; accumulate its gradients and start reducing them."""
        self.micro_step_id += 1
        self.new_sums()
        last = self.is_gradient_accumulation_boundary
        if self._reduction is not None:
            self._reduction.begin(last)
        self.loss_scaler.backward(loss.float(), retain_graph=retain_graph)
        if self._reduction is not None:
            self._reduction.end(last)
            return
        for gradients in self._gradients:
            gradients.take()

    def new_sums(self) -> None:
        """Set the sums to 0 at the start of a step; later in a step do nothing."""
        for gradients in self._gradients:
            gradients.start()

    def settle(self) -> None:
        """Wait for the reductions that were started, and add their results to the sums."""
        for gradients in self._gradients:
            gradients.receive()

    def overlapping_partition_gradients_reduce_epilogue(self) -> None:
        """Does nothing; the engine calls it after every backward pass of stage 2."""

    def reduce_gradients(self, pipeline_parallel: bool = False) -> None:
        """Does nothing; the engine calls it before the step of stage 1."""
        if pipeline_parallel:
            raise ValueError(f"zero_optimization.{KEY} does not work with pipelines; remove it")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One optimizer step; skipped, and the loss scale lowered, where the norm is not finite."""
        self.micro_step_id = -1
        if self._reduction is not None:
            self._reduction.flush()
        gradients = [group.finish() for group in self._gradients]
        if self._reduction is not None:
            self._reduction.finished()
        self.complete(gradients)
        norm, scale = self.norm_of(gradients), self.loss_scale
        self.overflow = not math.isfinite(norm)
        self._update_scale(self.overflow)
        for group in self._gradients:
            group.rescale(self.loss_scale / scale, self.overflow)
        if self.overflow:
            return
        self._global_grad_norm = norm
        combined = scale
        if self.clip_grad > 0.0:
            combined = scale * max(1.0, (norm / scale + 1e-6) / self.clip_grad)
        for partition, gradient in zip(self.single_partition_of_fp32_groups, gradients):
            partition.grad = gradient if combined == 1.0 else gradient.mul_(1.0 / combined)
        self.optimizer.step()
        for partition, group in zip(self.single_partition_of_fp32_groups, self._gradients):
            partition.grad = None
            group.share(partition)

    def complete(self, gradients: list[Tensor]) -> None:
        """Add what processes outside of the groups have of the gradients: nothing here."""

    def norm_of(self, gradients: list[Tensor]) -> float:
        """2-norm over all processes; each element is in one partition of one process."""
        total = self.squares(gradients)
        if dist.get_world_size(group=self.dp_process_group) > 1:
            dist.all_reduce(total, group=self.dp_process_group)
        return math.sqrt(total.item())

    def squares(self, gradients: list[Tensor]) -> Tensor:
        """Sum of the squares of all elements, in fp64 on the device; 0 without gradients."""
        # in pieces: on a GPU the norm in fp64 makes an fp64 copy of its input
        pieces = [piece for gradient in gradients for piece in gradient.split(_NORM_ELEMENTS)]
        parts = [torch.linalg.vector_norm(p, dtype=torch.float64).square() for p in pieces]
        none = torch.zeros((), dtype=torch.float64, device=self._gradients[0].sum.device)
        return torch.stack(parts).sum() if parts else none
