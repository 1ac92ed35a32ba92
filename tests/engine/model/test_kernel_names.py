"""The names of kernels in a record are those of the kernels that ran."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Iterator

import pytest
from deepspeed.moe.kernels import copy_engines, policy

from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.train import start

CASE = find_case("tuned", 1)  # compiled, bf16, no dropout
TWO = find_case("tuned", 2)  # the same, with the experts shared out


@pytest.fixture(autouse=True)
def all_libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Library:
        VERSION = "library 1"

    monkeypatch.setattr(start.groups, "get_expert_parallel_group", lambda: None)
    libraries = policy.Libraries(Library, Library, Library, copy_engines=True)
    with policy.using(policy.KernelPolicy(libraries)):
        yield


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"compiled": False, "cuda_graph": False}, {}),
        ({}, {"products": "library 1", "attention": "library 1"}),
        ({"dropout": 0.1}, {"products": "library 1", "attention": "torch"}),
        ({"precision": "fp32"}, {"products": "torch", "attention": "torch"}),
    ],
)
def test_without_expert_parallelism_products_and_attention_are_named(
    changes: dict[str, Any], expected: dict[str, str]
) -> None:
    assert start.kernel_names(replace(CASE, **changes)) == expected


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("connected", [True, False])
def test_with_expert_parallelism_the_exchange_is_named(
    connected: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_engines, "connected", lambda name: connected)
    monkeypatch.setattr(start, "backend", lambda: "nccl")
    names = start.kernel_names(replace(TWO, precision=precision))
    assert names["exchange"] == ("copy engines" if connected else "nccl")
    assert not start.kernel_names(replace(TWO, compiled=False, cuda_graph=False))


@pytest.mark.parametrize("compiled", [True, False])
def test_an_exchange_by_hosts_is_named_compiled_or_not(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = type("Group", (), {"group_name": "the host's"})()
    monkeypatch.setattr(start, "near_group", lambda group: host)
    monkeypatch.setattr(copy_engines, "connected", lambda name: name == "the host's")
    monkeypatch.setattr(start, "backend", lambda: "nccl")
    names = start.kernel_names(replace(TWO, compiled=compiled, cuda_graph=compiled))
    assert names["exchange"] == "copy engines in a host, nccl between"
