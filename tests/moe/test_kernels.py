"""Which kernels are chosen, and what is said where one could be had and is not."""

from __future__ import annotations

import sys
import threading
from typing import Iterator

import pytest
import torch
from deepspeed.moe import cublaslt, kernel_check
from deepspeed.moe import kernels as chosen


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(chosen.VARIABLE, raising=False)
    chosen.forget()
    yield
    chosen.forget()


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hopper GPU as far as the choice asks, on which the two packages are not installed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cublaslt, "problem", lambda: None)
    monkeypatch.setattr(chosen, "_is_hopper", lambda: True)
    for package in ("quack", "flash_attn"):
        monkeypatch.setitem(sys.modules, package, None)
    for module in ("hopper_products", "hopper_attention"):
        monkeypatch.delitem(sys.modules, f"deepspeed.moe.{module}", raising=False)


def test_without_a_gpu_everything_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen.kernels() == chosen.Kernels()
    assert chosen.kernels().names() == {"products": "torch", "attention": "torch"}


def test_what_is_missing_is_said(hopper: None) -> None:
    found = chosen.kernels()
    assert found.cublaslt and not found.hopper and not found.attention
    assert found.names() == {"products": "cublaslt", "attention": "torch"}
    first, second = found.notes
    assert first.startswith("products are cuBLAS's: quack-kernels is not installed")
    assert second.startswith("attention's gradient is cuDNN's: flash-attn-4 is not installed")
    assert all("requirements-hopper.txt" in note for note in found.notes)


@pytest.mark.parametrize("choice", chosen.CHOICES)
def test_fewer_can_be_asked_for(choice: str, hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(chosen.VARIABLE, choice)
    found = chosen.kernels()
    assert found.cublaslt == (choice != "torch")
    assert len(found.notes) == (2 if choice == "all" else 0)


def test_a_choice_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(chosen.VARIABLE, "fast")
    with pytest.raises(ValueError, match="expected one of all, cublas, torch"):
        chosen.kernels()


def test_ahead(hopper: None) -> None:
    chosen.find_ahead()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(timeout=60)
    assert chosen._found is not None and chosen._found is chosen.kernels()


def test_a_check_waits_for_a_result_that_says_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_check, "LEFT", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    zeros, ones = torch.zeros(4), torch.ones(4)

    def check(found: torch.Tensor, right: torch.Tensor) -> None:
        kernel_check.check("some library", "kind", found.dtype, lambda: (found,), lambda: (right,))

    check(zeros, zeros)
    assert kernel_check.due("kind")
    check(ones, ones)
    assert not kernel_check.due("kind")
    check(ones, 2 * ones)  # not looked at any more
    monkeypatch.setattr(kernel_check, "LEFT", {})
    with pytest.raises(RuntimeError, match="some library's result for kind is"):
        check(ones, 2 * ones)
