"""Views kept from step to step, for a gradient that stays where it is: the same steps as without.

A view of what was replaced would update memory that nobody reads any more.
"""

from __future__ import annotations

import copy
import gc
import weakref

import torch
from support.adafactor import VIEWS, TorchDispatchMode, load_package

adafactor = load_package()
Adafactor = adafactor.Adafactor
STAYS_ATTRIBUTE = adafactor.optimizer.STAYS_ATTRIBUTE

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
        found.append(partition.clone())
    assert torch.equal(*found)


class Views(TorchDispatchMode):
    """Counts the views that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in VIEWS
        return func(*args, **(kwargs or {}))


def test_a_gradient_that_stays_is_not_cut_into_views_again() -> None:
    counts = []
    for stays in (False, True):
        optimizer, partition = make(stays)
        steps(optimizer, partition, 1)
        with Views() as views:
            steps(optimizer, partition, 2)
        counts.append(views.count)
    moves, stays = counts
    assert stays < moves


def test_a_partition_that_was_replaced_is_let_go() -> None:
    """Nothing keeps its memory, and the one in its place is trained."""
    optimizer, partition = make(stays=True)
    steps(optimizer, partition, 1)
    _, other = make(stays=True)
    optimizer.param_groups[0]["params"] = [other]
    optimizer.state[other] = copy.deepcopy(optimizer.state.pop(partition))
    before, gone = other.clone(), weakref.ref(partition)
    steps(optimizer, other, 2)
    del partition
    gc.collect()
    assert gone() is None and not torch.equal(other, before)
