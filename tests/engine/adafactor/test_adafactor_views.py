"""Views kept from step to step, for a gradient that stays where it is: the same steps as without.

A view of what was replaced would update memory that nobody reads any more.
"""

from __future__ import annotations

import copy

import torch
from deepspeed.ops import adafactor
from deepspeed.ops.adafactor.optimizer import STAYS_ATTRIBUTE, Adafactor

SHAPES = [(6, 4), (4,), (3, 5)]


def make(stays: bool) -> tuple[Adafactor, torch.Tensor]:
    partition = torch.linspace(-1, 1, sum(torch.Size(shape).numel() for shape in SHAPES))
    adafactor.tag_partition(partition, [torch.zeros(shape) for shape in SHAPES], 0, 1)
    optimizer = Adafactor([partition], lr=0.1, relative_step=False, mode="sharded")
    optimizer.init_state()
    partition.grad = torch.zeros_like(partition)
    setattr(partition.grad, STAYS_ATTRIBUTE, stays)
    return optimizer, partition


def steps(optimizer: Adafactor, partition: torch.Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        partition.grad.copy_(torch.randn(partition.shape, generator=generator))
        optimizer.step()


def test_the_same_steps_also_with_a_loaded_state() -> None:
    found = []
    for stays in (False, True):
        optimizer, partition = make(stays)
        steps(optimizer, partition, 1)
        saved, weights = copy.deepcopy(optimizer.state_dict()), partition.clone()
        steps(optimizer, partition, 2)
        optimizer.load_state_dict(saved)  # other tensors than those that are viewed
        partition.copy_(weights)
        steps(optimizer, partition, 3)
        assert len(optimizer.__dict__.get("_views", {})) == int(stays)
        found.append(partition.clone())
    assert torch.equal(*found)


def test_views_of_a_partition_that_is_gone_are_let_go() -> None:
    optimizer, partition = make(stays=True)
    steps(optimizer, partition, 1)
    _, other = make(stays=True)
    optimizer.param_groups[0]["params"] = [other]
    optimizer.state[other] = copy.deepcopy(optimizer.state.pop(partition))
    steps(optimizer, other, 2)
    assert list(optimizer.__dict__["_views"]) == [other]
