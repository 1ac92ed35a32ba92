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
element of the partition (stage 1: of the group).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.ops.adafactor.optimizer import STAYS_ATTRIBUTE
from deepspeed.runtime.zero.stage2 import FP16_DeepSpeedZeroOptimizer
from deepspeed.utils.neutral import has_triton
from torch import Tensor

KEY = "flat_gradients"
_NORM_ELEMENTS = 2**24
_LARGE = 2**18  # elements; below, launching a kernel dominates the time
# Their names since torch 1.13, and before.
_all_gather = getattr(dist, "all_gather_into_tensor", None) or dist._all_gather_base
_reduce_scatter_flat = getattr(dist, "reduce_scatter_tensor", None) or dist._reduce_scatter_base


def zero_optimizer(config: dict[str, Any]) -> type[FP16_DeepSpeedZeroOptimizer]:
    """The class for ZeRO-1/2 that a DeepSpeed configuration asks for.

    Raises:
        ValueError: if ``flat_gradients`` is not a boolean.
    """
    wanted = config.get("zero_optimization", {})
    wanted = wanted.get(KEY, False) if isinstance(wanted, dict) else False
    if not isinstance(wanted, bool):
        raise ValueError(f"zero_optimization.{KEY} is {wanted!r}; expected true or false")
    return FlatGradientsOptimizer if wanted else FP16_DeepSpeedZeroOptimizer


def check(engine: Any) -> None:
    """Refuse ``flat_gradients`` where ``engine`` would not use it.

    Raises:
        ValueError: at ZeRO stage 0 or 3, and with ``legacy_stage1``.
    """
    stage = engine.zero_optimization_stage()
    legacy = stage == 1 and engine.zero_legacy_stage1()
    wanted = zero_optimizer(engine._config._param_dict) is FlatGradientsOptimizer
    if wanted and (stage not in (1, 2) or legacy):
        found = "legacy_stage1" if legacy else f"stage {stage}"
        raise ValueError(
            f"zero_optimization.{KEY} is true with {found}; expected stage 1 or 2 without"
            f" legacy_stage1: remove {KEY}"
        )


class FlatGradientsOptimizer(FP16_DeepSpeedZeroOptimizer):
    """See the module. Takes the arguments of ``FP16_DeepSpeedZeroOptimizer``.

    Raises:
        ValueError: with CPU offload or model parallelism, which this class does not support.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        for option in ("cpu_offload", "mpu"):
            if options.get(option):
                raise ValueError(
                    f"zero_optimization.{KEY} is true and {option} is set; expected one of the two:"
                    f" remove {KEY}"
                )
        super().__init__(*args, **options)
        shared = dist.get_world_size(group=self.dp_process_group)
        self._gradients = [
            _GroupGradients(self, i, self.partition_gradients, 1.0 / shared)
            for i in range(len(self.single_partition_of_fp32_groups))
        ]

    def create_reduce_and_remove_grad_hooks(self) -> None:
        """Makes no hooks: gradients are processed after the backward pass."""

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Backward pass of one micro-batch; accumulate its gradients and start reducing them."""
        self.micro_step_id += 1
        self.new_sums()
        self.loss_scaler.backward(loss.float(), retain_graph=retain_graph)
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
        gradients = [group.finish() for group in self._gradients]
        norm, scale = self._norm(gradients), self.loss_scale
        self.overflow = not math.isfinite(norm)
        self._update_scale(self.overflow)
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

    def _norm(self, gradients: list[Tensor]) -> float:
        """2-norm over all processes; each element is in one partition of one process."""
        # in pieces: on a GPU the norm in fp64 makes an fp64 copy of its input
        pieces = [piece for gradient in gradients for piece in gradient.split(_NORM_ELEMENTS)]
        parts = [torch.linalg.vector_norm(p, dtype=torch.float64).square() for p in pieces]
        total = torch.stack(parts).sum()
        if dist.get_world_size(group=self.dp_process_group) > 1:
            dist.all_reduce(total, group=self.dp_process_group)
        return math.sqrt(total.item())


class _GroupGradients:
    """The gradients of one parameter group; each process's are weighted by ``share_of_each``."""

    def __init__(self, zero: Any, i: int, partitioned: bool, share_of_each: float) -> None:
        self.process_group = zero.real_dp_process_group[i]
        self.processes = dist.get_world_size(group=self.process_group)
        self.rank = dist.get_rank(group=self.process_group)
        self.share_of_each = share_of_each
        ordered, self.weights = _names(zero, i)
        self.params = [p for p in ordered if p.requires_grad]
        numel = self.weights.numel()
        self.size = numel // self.processes
        # every micro-batch is reduced (stage 2), or only the sum of all of them
        self.each = partitioned and self.processes > 1
        self.sum = torch.zeros(
            self.size if self.each else numel, dtype=torch.float32, device=self.weights.device
        )
        setattr(self.sum, STAYS_ATTRIBUTE, True)
        self.send = torch.zeros_like(self.weights) if self.each else self.sum
        self.received = torch.empty_like(self.send[: self.size]) if self.each else self.sum
        self.places = _views(self.send, ordered)
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
            _put(self.places, self.params, self.share_of_each, add=True)
            return
        self.receive()
        _put(self.places, self.params, self.share_of_each, add=False)
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
        if dist.get_backend(self.process_group) == "nccl":
            _all_gather(weights, own, group=self.process_group)
        else:
            parts = list(weights.split(self.size))
            dist.all_gather(parts, own, group=self.process_group)

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
def _put(places: list[Tensor], params: list[Tensor], factor: float, add: bool) -> None:
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
