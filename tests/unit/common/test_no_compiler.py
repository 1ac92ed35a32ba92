"""An eager program's optimizer does not import torch's compiler."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import sys
from types import FunctionType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsmoe.common.packages.no_compiler import (
    KEPT,
    without_compiler,
    without_compiler_anywhere,
    wrapped_methods,
)


class Nothing(torch.optim.Optimizer):
    """An optimizer of one parameter, which does not move it."""

    def __init__(self) -> None:
        super().__init__([torch.nn.Parameter(torch.ones(3))], {"lr": 1.0})


def used() -> list[str]:
    optimizer = Nothing()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    return list(optimizer.state_dict())


def test_an_optimizer_works_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = list(wrapped_methods(torch.optim.Optimizer))
    assert {"add_param_group", "zero_grad"} <= {method.__name__ for method in methods}
    for method in methods:  # as in a process that has made no optimizer yet
        monkeypatch.delattr(method, KEPT, raising=False)
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # an import of it fails
    with pytest.raises(ImportError):
        used()
    without_compiler(torch.optim.Optimizer)
    assert used() == ["state", "param_groups"]


class Passing(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


def step_without_values() -> None:
    with Passing(), torch.device("meta"):
        layer = torch.nn.Linear(3, 4)
        torch.nn.functional.gelu(layer(torch.empty(2, 3)) * 2).logsumexp(0).sum().backward()
    assert layer.weight.grad.shape == (4, 3)


def in_a_fork() -> None:
    """What the test below proves, where no other test sees the change."""
    gc.unfreeze()  # tests/conftest.py hides the modules from the garbage collector
    for found in gc.get_objects():  # as in a process that has called none of them yet
        if isinstance(found, FunctionType):
            found.__dict__.pop(KEPT, None)
    sys.modules["torch._dynamo"] = None  # type: ignore[assignment]
    # Some torches need no compiler here; with those it must do no harm.
    with contextlib.suppress(ImportError):
        step_without_values()
    without_compiler_anywhere()
    step_without_values()
    os._exit(0)


def test_a_step_without_values_works_without_the_compiler() -> None:
    child = multiprocessing.get_context("fork").Process(target=in_a_fork)
    child.start()
    child.join()
    assert child.exitcode == 0
