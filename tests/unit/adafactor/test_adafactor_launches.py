"""The host never waits for the device, and launches follow the shapes, not the parameters."""

from __future__ import annotations

import pytest
import torch
import torch_optimizer
from support.adafactor import NoWaiting, gradients, load_package, random_tensors

adafactor = load_package()
FULL = {"lr": 0.05, "relative_step": False, "beta1": 0.8, "weight_decay": 0.05}


def launches_of_a_step(optimizer_class, shapes, **options) -> int:
    params = [torch.nn.Parameter(value) for value in random_tensors(shapes, 1, 0.3)]
    optimizer = optimizer_class(params, **options)
    for step in range(2):
        for param, grad in zip(params, gradients(shapes, step)):
            param.grad = grad
        if step == 0:
            optimizer.step()  # makes the state
    with NoWaiting() as counter:
        optimizer.step()
    return counter.launches


def test_the_check_notices_an_optimizer_that_waits():
    with pytest.raises(AssertionError, match="waits for the device"):
        launches_of_a_step(torch_optimizer.Adafactor, [(3, 4)])


@pytest.mark.parametrize(("options", "limit"), [({}, 54), (FULL, 64)], ids=["default", "full"])
def test_launches_do_not_grow_with_parameters_of_one_shape(options, limit):
    shapes = [(3, 4), (4,), (2, 3, 4)]
    few = launches_of_a_step(adafactor.Adafactor, shapes * 2, **options)
    many = launches_of_a_step(adafactor.Adafactor, shapes * 40, **options)
    assert few == many
    # Two kinds of unit: 3 x 4 matrices, also those that are stacked, and vectors.
    assert many <= limit


def test_launches_of_a_partition_do_not_grow_with_its_parameters():
    def launches(copies: int) -> int:
        shapes = [(3, 4), (4,)] * copies
        numel = 16 * copies
        partition = torch.nn.Parameter(random_tensors([(numel,)], 1, 0.3)[0])
        partition.adafactor_tag = adafactor.PartitionTag(shapes, numel, 0, 1)
        optimizer = adafactor.Adafactor([partition])
        partition.grad = random_tensors([(numel,)], 2, 1.0)[0]
        optimizer.step()
        with NoWaiting() as counter:
            optimizer.step()
        return counter.launches

    assert launches(2) == launches(40) <= 54
