"""What a record says about kernels is what ran."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from deepspeed.moe.kernels import copy_engines, policy

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.train import training

CASE = find_case("tuned", 1)  # compiled, bf16, no dropout
TWO = find_case("tuned", 2)  # the same, with the experts shared out


@pytest.fixture(autouse=True)
def both_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        VERSION = "library 1"

    found = policy.Kernels(hopper=Library, attention=Library, cublaslt=True, copy_engines=True)
    monkeypatch.setattr(policy, "_found", found)
    monkeypatch.setattr(training.groups, "get_expert_parallel_group", lambda: None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"compiled": False, "cuda_graph": False}, {}),
        ({}, {"products": "library 1", "attention": "library 1"}),
        ({"dropout": 0.1}, {"products": "library 1", "attention": "torch"}),
        ({"precision": "fp32"}, {"products": "torch", "attention": "torch"}),
    ],
)
def test_of_one_process(changes: dict[str, Any], expected: dict[str, str]) -> None:
    assert training.kernel_names(replace(CASE, **changes)) == expected


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("served", [True, False])
def test_of_the_exchange(served: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_engines, "serves", lambda name: served)
    monkeypatch.setattr(training, "backend", lambda: "nccl")
    names = training.kernel_names(replace(TWO, precision=precision))
    assert names["exchange"] == ("copy engines" if served else "nccl")
    assert not training.kernel_names(replace(TWO, compiled=False, cuda_graph=False))
