"""What the processes do in the tests of pipelines, ZeRO-3 and activation checkpointing.

Each returns what was found and what plain torch finds on the same global batch.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.activation_checkpointing import checkpointing

from support.scenarios import end_groups

RATE = 0.1
# DeepSpeed's own sizes are for large models: it fills 2 GB before the first step.
SMALL = {
    "reduce_bucket_size": 3000,
    "allgather_bucket_size": 6000,
    "stage3_prefetch_bucket_size": 3000,
}
STEPS, MICRO_BATCHES, SIZE = 4, 3, 2


def layers() -> list[torch.nn.Module]:
    torch.manual_seed(3)
    return [
        torch.nn.Linear(8, 16),
        torch.nn.Tanh(),
        torch.nn.Linear(16, 8),
        torch.nn.Linear(8, 1),
    ]


def distance(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs - labels).pow(2).mean()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """[steps, micro-batches, size, width]: inputs and labels."""
    generator = torch.Generator().manual_seed(1)
    shape = (STEPS, MICRO_BATCHES, SIZE)
    return torch.randn(*shape, 8, generator=generator), torch.randn(*shape, 1, generator=generator)


def plain_losses(micro_batches: int, clip: float = 0.0) -> list[float]:
    """Losses of plain SGD on the first ``micro_batches`` of each step, then the last norm."""
    model = torch.nn.Sequential(*layers())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for x, y in zip(*data()):
        x, y = x[:micro_batches].flatten(0, 1), y[:micro_batches].flatten(0, 1)
        loss = distance(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or 1e9)
        optimizer.step()
    return [*losses, norm.item()]


def config(**more: Any) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": SIZE,
        "optimizer": {"type": "SGD", "params": {"lr": RATE}},
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        **more,
    }


def pipeline_losses(interval: int, zero_stage: int, clip: float = 0.0) -> dict[str, list[float]]:
    """A pipeline with a stage on each process; checkpoints every ``interval`` layers, 0 none."""
    end_groups()
    stages = dist.get_world_size()
    model = PipelineModule(
        layers=layers(),
        num_stages=stages,
        loss_fn=distance,
        partition_method="uniform",
        activation_checkpoint_interval=interval,
    )
    more = {"zero_optimization": {"stage": zero_stage, **SMALL}} if zero_stage else {}
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(model.parameters()),
        config=config(gradient_accumulation_steps=MICRO_BATCHES, gradient_clipping=clip, **more),
    )
    losses = []
    for x, y in zip(*data()):
        losses.append(float(engine.train_batch(iter(list(zip(x, y))))))
    found = [*losses, engine.get_global_grad_norm()]
    return {"found": found, "expected": plain_losses(MICRO_BATCHES, clip)}


@contextlib.contextmanager
def own_linear() -> Iterator[None]:
    """ZeRO-3 replaces torch.nn.functional.linear for good, which later calls must not see."""
    linear = torch.nn.functional.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = linear


@own_linear()
def zero3_losses(init: bool) -> dict[str, list[float]]:
    """ZeRO-3, each process a micro-batch; with ``init`` the model is made under zero.Init."""
    end_groups()
    settings = config(zero_optimization={"stage": 3, **SMALL})
    if init:
        with deepspeed.zero.Init(config=settings, dtype=torch.float):
            model = torch.nn.Sequential(*layers())
    else:
        model = torch.nn.Sequential(*layers())
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=settings
    )
    world, rank = dist.get_world_size(), dist.get_rank()
    losses = []
    for x, y in zip(*data()):
        loss = distance(engine(x[rank]), y[rank])
        engine.backward(loss)
        engine.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item() / world)
    return {"found": losses, "expected": plain_losses(world)[:-1]}


@own_linear()
def dtypes_under_init() -> list[str]:
    """What zero.Init for fp16 makes of parameters, and of tensors outside of it."""
    fp16 = {"enabled": True}
    with deepspeed.zero.Init(config=config(fp16=fp16, zero_optimization={"stage": 3, **SMALL})):
        inside = torch.nn.Linear(4, 4).weight.dtype
    return [str(inside), str(torch.empty(1).dtype)]


class _Alone:
    """A Megatron-like ``mpu`` of one process."""

    @staticmethod
    def get_model_parallel_rank() -> int:
        return 0

    get_data_parallel_rank = get_model_parallel_rank

    @staticmethod
    def get_model_parallel_world_size() -> int:
        return 1

    @staticmethod
    def get_model_parallel_group() -> Any:
        return dist.group.WORLD


def checkpointed_gradients() -> list[list[torch.Tensor]]:
    """Gradients of layers with dropout: as they are, and computed again in the backward pass.

    One dropout draws from the default generator, the other from the tracker's fork of it.
    """
    checkpointing.configure(_Alone, partition_activations=False)
    model = torch.nn.Sequential(*layers())
    x = torch.ones(4, 8, requires_grad=True)

    def part(values: torch.Tensor) -> torch.Tensor:
        with checkpointing.get_cuda_rng_tracker().fork():
            values = torch.nn.functional.dropout(values, 0.5)
        return torch.nn.functional.dropout(model(values), 0.5)

    results = []
    for through in (lambda f, v: f(v), checkpointing.checkpoint):
        checkpointing.get_cuda_rng_tracker().reset()
        checkpointing.model_parallel_cuda_manual_seed(7)
        loss = sum(through(part, x * factor).sum() for factor in (1.0, 2.0))
        loss.backward()
        params = [x, *model.parameters()]
        results.append([p.grad.clone() for p in params])
        for p in params:
            p.grad = None
    return results
