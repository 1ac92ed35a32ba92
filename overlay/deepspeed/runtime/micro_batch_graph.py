"""Forward and backward pass of a micro-batch as one CUDA graph.

A step of many small micro-batches is bound by the host, which launches some 700 kernels for each.
All have the same shapes, nothing waits for the device in between, and with ``flat_gradients`` the
sums have fixed addresses, so that the whole pass can be recorded once and launched by one call. The
random generator's state is part of the graph: every replay draws other numbers.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from deepspeed.runtime.zero.flat_gradients import FlatGradientsOptimizer
from torch import Tensor

# Passes before the recording: compilation, cuDNN's and cuBLAS's choices, the allocator's growth.
WARM_UP = 2


def graph_problem(engine: Any) -> str | None:
    """Why the micro-batches of ``engine`` cannot be recorded; None where they can."""
    if not torch.cuda.is_available():
        return "a CUDA graph needs a CUDA device, and there is none"
    if not isinstance(engine.optimizer, FlatGradientsOptimizer):
        return "a CUDA graph of a micro-batch needs zero_optimization.flat_gradients"
    if engine.optimizer.dynamic_loss_scale:
        return "a CUDA graph keeps one loss scale; expected a static one, or bf16"
    # each reads from, or passes something to, the model in every pass
    names = ("tensorboard_enabled", "wall_clock_breakdown", "flops_profiler_enabled")
    for name in (*names, "pld_enabled", "curriculum_enabled"):
        if getattr(engine, name)():
            return f"a CUDA graph is one call for forward and backward pass; switch {name} off"
    return None


def plain_micro_batch(engine: Any) -> Callable[..., Tensor]:
    """``engine(*inputs)`` and ``engine.backward``: what the graph replaces. Returns the loss."""

    def micro_batch(*inputs: Tensor) -> Tensor:
        loss = engine(*inputs)
        engine.backward(loss)
        return loss.detach()

    return micro_batch


class MicroBatchGraph:
    """``loss = micro_batch(*inputs)``, then ``engine.step()``, as with :func:`plain_micro_batch`.

    All calls have inputs of the same shapes and dtypes. The next call overwrites the returned loss
    and the model's ``last_stats``.

    Raises:
        ValueError: where :func:`graph_problem` has a reason; by a call, for inputs of other
            shapes or dtypes than those recorded.
    """

    def __init__(self, engine: Any) -> None:
        problem = graph_problem(engine)
        if problem:
            raise ValueError(problem)
        self.engine = engine
        self.calls = 0
        self.plain = plain_micro_batch(engine)
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= WARM_UP:
            return self.plain(*inputs)
        if self.graph is None:
            self._record(inputs)
        given, recorded = map(_forms, (inputs, self.inputs))
        if given != recorded:
            raise ValueError(f"inputs are {given}; expected those of the recording, {recorded}")
        for place, value in zip(self.inputs, inputs):
            place.copy_(value)
        self.engine.tput_timer.start()
        self.engine.optimizer.new_sums()
        assert self.graph is not None
        self.graph.replay()
        # An evaluation in between replaced them.
        self.engine.module.last_stats = self.stats
        return self.loss

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        engine = self.engine
        engine.optimizer.new_sums()  # before the recording, not in it
        engine.optimizer.settle()
        self.inputs = tuple(given.clone() for given in inputs)
        graph = torch.cuda.CUDAGraph()
        # Other threads (NCCL's watchdog) may call CUDA meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            loss = engine.module(*self.inputs)
            scaled = loss.float() / engine.gradient_accumulation_steps()
            engine.optimizer.backward(scaled)
            engine.optimizer.settle()
            self.loss = loss.detach()
        self.graph, self.stats = graph, getattr(engine.module, "last_stats", None)


def _forms(tensors: tuple[Tensor, ...]) -> list[tuple[tuple[int, ...], torch.dtype]]:
    return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
