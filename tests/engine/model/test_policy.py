"""The kernel policy: which libraries it finds, what it says of missing ones, what it compares."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Iterator

import deepspeed.moe.kernels
import pytest
import torch
from deepspeed.moe.kernels import choices, cublaslt, linear, policy, verify


@pytest.fixture(autouse=True)
def new_policy(monkeypatch: pytest.MonkeyPatch) -> Iterator[policy.KernelPolicy]:
    monkeypatch.delenv(choices.VARIABLE, raising=False)
    with policy.using(policy.KernelPolicy()) as new:
        yield new


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hopper GPU as far as the policy asks, on which the two packages are not installed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cublaslt, "problem", lambda: None)
    for package in ("quack", "flash_attn"):
        monkeypatch.setitem(sys.modules, package, None)
    for module in ("hopper_products", "hopper_attention"):
        monkeypatch.delitem(sys.modules, f"deepspeed.moe.kernels.{module}", raising=False)
        monkeypatch.delattr(deepspeed.moe.kernels, module, raising=False)


def test_without_a_gpu_no_library_is_used(
    new_policy: policy.KernelPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert new_policy.libraries() == policy.Libraries()
    assert new_policy.names() == {"products": "torch", "attention": "torch"}


def test_missing_packages_and_later_fallbacks_are_noted(
    hopper: None, new_policy: policy.KernelPolicy
) -> None:
    assert policy.notes() == ()  # nothing was searched for yet
    found = new_policy.libraries()
    assert found.cublaslt and not found.hopper and not found.attention
    assert new_policy.names() == {"products": "cublaslt", "attention": "torch"}
    first, second = found.notes
    assert first.startswith("products use cuBLAS: quack-kernels is not installed")
    assert second.startswith("attention's gradient uses cuDNN: flash-attn-4 is not installed")
    assert all("extra 'hopper'" in note for note in found.notes)
    for _ in range(2):
        with pytest.warns(UserWarning, match="tokens take a longer way"):
            new_policy.fall_back("tokens take a longer way")
    assert policy.notes() == (first, second, "tokens take a longer way")


@pytest.mark.parametrize("choice", choices.CHOICES)
def test_the_environment_restricts_the_libraries(
    choice: str,
    hopper: None,
    new_policy: policy.KernelPolicy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(choices.VARIABLE, choice)
    found = new_policy.libraries()
    assert (found.cublaslt is not None) == (choice != "torch")
    assert found.copy_engines == (choice == "all")
    assert len(found.notes) == (2 if choice in ("all", "nccl") else 0)


def test_an_unknown_choice_is_refused(
    new_policy: policy.KernelPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(choices.VARIABLE, "fast")
    with pytest.raises(ValueError, match="expected one of all, nccl, cublas, torch"):
        new_policy.libraries()


def test_libraries_found_ahead_are_those_used(
    hopper: None, new_policy: policy.KernelPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy.find_ahead().join(timeout=300)
    monkeypatch.setenv(choices.VARIABLE, "fast")  # a search from here on would fail
    assert len(new_policy.libraries().notes) == 2


def test_eager_layers_never_search_for_libraries(
    new_policy: policy.KernelPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packages take seconds to import, and nothing eager uses them."""
    monkeypatch.setenv(choices.VARIABLE, "fast")  # a search fails
    x = torch.randn(2, 4)
    assert not new_policy.fuses_gelu(x) and not new_policy.multiplies(x)
    assert not new_policy.fuses_attention(x) and not new_policy.overlaps_exchange(x, "group")
    assert linear.linear(torch.nn.Linear(4, 3), x).shape == (2, 3)


@pytest.mark.skipif(not policy.HAS_OPERATORS, reason="torch has no custom operators before 2.4")
def test_a_compiled_layer_follows_the_policy_that_is_in_use() -> None:
    """Another policy is seen by a function that is compiled already; it is one graph with each."""

    class Doubling(policy.KernelPolicy):
        def attend(self, q, k, v, dropout):  # type: ignore[no-untyped-def]
            return 2 * q

        def multiplies(self, x: torch.Tensor) -> bool:
            return torch.compiler.is_compiling()

    layer = torch.nn.Linear(4, 3)

    def function(x: torch.Tensor) -> torch.Tensor:
        return policy.kernels().attend(x, x, x, 0.0) + linear.linear(layer, x).sum()

    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    x = torch.randn(1, 2, 5, 4)
    torch.testing.assert_close(compiled(x), function(x))
    with policy.using(Doubling(policy.Libraries())):
        torch.testing.assert_close(compiled(x), 2 * x + layer(x).sum())
    torch.testing.assert_close(compiled(x), function(x))


@pytest.fixture
def no_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA graph is being recorded; torch 1.10 cannot say, and records none."""
    name = "is_current_stream_capturing"
    monkeypatch.setattr(torch.cuda, name, lambda: False, raising=False)


def compare(results: verify.FirstResults, found: torch.Tensor, right: torch.Tensor) -> None:
    results.check("some library", "kind", found.dtype, lambda: (found,), lambda: (right,))


def test_comparison_goes_on_until_a_result_is_conclusive(no_recording: None) -> None:
    zeros, ones = torch.zeros(4), torch.ones(4)
    results = verify.FirstResults()
    compare(results, zeros, zeros)
    assert results.due("kind")
    compare(results, ones, ones)
    assert not results.due("kind")
    compare(results, ones, 2 * ones)  # no longer compared


def test_a_wrong_first_result_is_an_error(no_recording: None) -> None:
    with pytest.raises(RuntimeError, match="some library's result for kind is"):
        compare(verify.FirstResults(), torch.ones(4), 2 * torch.ones(4))


def test_an_overflow_of_fp16_is_not_a_wrong_result(no_recording: None) -> None:
    """A dynamic loss scale starts above what fits; the step is skipped, and the run goes on."""
    right = torch.full((4,), 1e6)
    results = verify.FirstResults()
    results.check("x", "kind", torch.float16, lambda: (right.half(),), lambda: (right,))
    assert results.due("kind")


@pytest.mark.skipif(not policy.HAS_OPERATORS, reason="torch has no custom operators before 2.4")
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_wrong_product_of_quack_is_an_error(factor: float, no_recording: None) -> None:
    def product(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> None:
        y.copy_((torch.bmm(x, w) + b[:, None]) * factor)

    quack = SimpleNamespace(supports_operands=lambda *tensors: True, product=product)
    x, w, b = torch.randn(6, 4), torch.randn(3, 4), torch.randn(3)
    with policy.using(policy.KernelPolicy(policy.Libraries(hopper=quack))):
        if factor == 1.0:
            expected = torch.nn.functional.linear(x, w, b)
            torch.testing.assert_close(linear.own_linear(x, w, b), expected)
        else:
            with pytest.raises(RuntimeError, match="quack's result"):
                linear.own_linear(x, w, b)
