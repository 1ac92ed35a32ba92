"""An eager program's optimizer does not import torch's compiler."""

from __future__ import annotations

import sys

import pytest
import torch

from dsmoe.common.packages.no_compiler import KEPT, without_compiler, wrapped_methods


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
