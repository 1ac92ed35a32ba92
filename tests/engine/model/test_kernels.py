"""Which kernels are chosen, and what is said where one could be had and is not."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Iterator

import deepspeed.moe
import pytest
import torch
from deepspeed.moe.kernels import cublaslt, linear, policy, verify

from dsmoe.commands import run as cli


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(policy.VARIABLE, raising=False)
    policy.forget()
    yield
    policy.forget()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hopper GPU as far as the choice asks, on which the two packages are not installed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cublaslt, "problem", lambda: None)
    monkeypatch.setattr(policy, "_is_hopper", lambda: True)
    for package in ("quack", "flash_attn"):
        monkeypatch.setitem(sys.modules, package, None)
    for module in ("hopper_products", "hopper_attention"):
        monkeypatch.delitem(sys.modules, f"deepspeed.moe.{module}", raising=False)
        monkeypatch.delattr(deepspeed.moe, module, raising=False)


def test_without_a_gpu_everything_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert policy.kernels() == policy.Kernels()
    assert policy.kernels().names() == {"products": "torch", "attention": "torch"}


def test_what_is_missing_is_said(hopper: None) -> None:
    found = policy.kernels()
    assert found.cublaslt and not found.hopper and not found.attention
    assert found.names() == {"products": "cublaslt", "attention": "torch"}
    first, second = found.notes
    assert first.startswith("products are cuBLAS's: quack-kernels is not installed")
    assert second.startswith("attention's gradient is cuDNN's: flash-attn-4 is not installed")
    assert all("requirements-hopper.txt" in note for note in found.notes)
    with pytest.warns(UserWarning, match="tokens take a longer way"):
        policy.leave("tokens take a longer way")
    assert policy.notes() == (first, second, "tokens take a longer way")
    policy.forget()
    assert policy.notes() == ()


@pytest.mark.parametrize("choice", policy.CHOICES)
def test_fewer_can_be_asked_for(choice: str, hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(policy.VARIABLE, choice)
    found = policy.kernels()
    assert found.cublaslt == (choice != "torch")
    assert found.copy_engines == (choice == "all")
    assert len(found.notes) == (2 if choice in ("all", "nccl") else 0)


def test_the_front_door_knows_the_choices() -> None:
    assert (cli.KERNELS_VARIABLE, cli.KERNELS) == (policy.VARIABLE, policy.CHOICES)


def test_a_choice_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(policy.VARIABLE, "fast")
    with pytest.raises(ValueError, match="expected one of all, nccl, cublas, torch"):
        policy.kernels()


def test_ahead(hopper: None) -> None:
    policy.find_ahead().join(timeout=60)
    assert policy._found is not None and policy._found is policy.kernels()


def answer_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA graph is being recorded; torch 1.10 cannot say, and records none."""
    name = "is_current_stream_capturing"
    monkeypatch.setattr(torch.cuda, name, lambda: False, raising=False)


def test_a_check_waits_for_a_result_that_says_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "LEFT", {})
    answer_no(monkeypatch)
    zeros, ones = torch.zeros(4), torch.ones(4)

    def check(found: torch.Tensor, right: torch.Tensor) -> None:
        verify.check("some library", "kind", found.dtype, lambda: (found,), lambda: (right,))

    check(zeros, zeros)
    assert verify.due("kind")
    check(ones, ones)
    assert not verify.due("kind")
    check(ones, 2 * ones)  # not looked at any more
    monkeypatch.setattr(verify, "LEFT", {})
    with pytest.raises(RuntimeError, match="some library's result for kind is"):
        check(ones, 2 * ones)


def test_what_fp16_cannot_hold_is_no_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dynamic loss scale starts above what fits; the step is skipped, and the run goes on."""
    monkeypatch.setattr(verify, "LEFT", {})
    answer_no(monkeypatch)
    right = torch.full((4,), 1e6)
    verify.check("x", "kind", torch.float16, lambda: (right.half(),), lambda: (right,))
    assert verify.due("kind")


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_wrong_product_of_quack_is_seen(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def product(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
        y.copy_((torch.bmm(x, w) + b[:, None]) * factor)

    if not linear.HAS_OPERATORS:
        pytest.skip("torch has no custom operators before 2.4")
    stand_in = SimpleNamespace(serves=lambda *tensors: True, product=product)
    monkeypatch.setattr(policy, "_found", policy.Kernels(hopper=stand_in))
    monkeypatch.setattr(verify, "LEFT", {})
    answer_no(monkeypatch)
    x, w, b = torch.randn(6, 4), torch.randn(3, 4), torch.randn(3)
    if factor == 1.0:
        torch.testing.assert_close(linear.own_linear(x, w, b), torch.nn.functional.linear(x, w, b))
    else:
        with pytest.raises(RuntimeError, match="quack's result"):
            linear.own_linear(x, w, b)
