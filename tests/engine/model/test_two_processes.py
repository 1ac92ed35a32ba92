"""One model over two processes: the same weights, losses and gradients as one process.

The definition is one process that sees both micro-batches in turn, with the same weights and
local groups of tokens. Float64, so that the tolerance (1e-12) leaves no room for a wrong factor.
"""

from __future__ import annotations

import pytest
import torch
from support.exchange_probes import COMPILES, step, tokens_of
from support.ranks import run_ranks

EXPERTS = ".deepspeed_moe.experts.stacked."


@pytest.fixture(scope="module")
def two() -> list[dict]:
    """What every form of the exchange gives, on each of two processes."""
    return run_ranks(2, "every_form_of_the_exchange", False)


@pytest.fixture(scope="module")
def two_compiled() -> list[dict]:
    return run_ranks(2, "every_form_of_the_exchange", True)


@pytest.mark.parametrize("implementation", ["index", "einsum"])
def test_two_processes_equal_one(implementation: str, two: list[dict], one_process: None) -> None:
    held = [rank[implementation] for rank in two]
    alone = [step(implementation, tokens_of(rank)) for rank in range(2)]
    for rank in range(2):
        torch.testing.assert_close(held[rank]["loss"], alone[rank]["loss"], rtol=0, atol=1e-12)
    for name, weight in alone[0]["weights"].items():
        total = alone[0]["gradients"][name] + alone[1]["gradients"][name]
        if EXPERTS in name:
            weights = torch.cat([rank["weights"][name] for rank in held])
            found = torch.cat([rank["gradients"][name] for rank in held])
        else:
            weights = held[0]["weights"][name]
            assert torch.equal(weights, held[1]["weights"][name])
            found = held[0]["gradients"][name] + held[1]["gradients"][name]
        assert torch.equal(weights, weight), name
        torch.testing.assert_close(found, total, rtol=0, atol=1e-12, msg=name)


@pytest.mark.skipif(not COMPILES, reason="compiled exchange was tried from torch 2.13 on")
def test_the_exchange_beside_the_experts_work_gives_the_same_gradients(two: list[dict]) -> None:
    assert_as_the_plain_one("overlapped", two)


@pytest.mark.long
@pytest.mark.skipif(not COMPILES, reason="compiled exchange was tried from torch 2.13 on")
@pytest.mark.parametrize("form", ["compiled", "overlapped and compiled"])
def test_a_compiled_exchange_gives_the_same_gradients(form: str, two_compiled: list[dict]) -> None:
    """In one graph, and beside the experts' work."""
    assert_as_the_plain_one(form, two_compiled)


def assert_as_the_plain_one(form: str, ranks: list[dict]) -> None:
    """Loss and gradients to 1e-12 of the plain model's."""
    for rank in ranks:
        plain, other = rank["index"], rank[form]
        torch.testing.assert_close(other["loss"], plain["loss"], rtol=0, atol=1e-12)
        for name, gradient in plain["gradients"].items():
            torch.testing.assert_close(
                other["gradients"][name], gradient, rtol=0, atol=1e-12, msg=name
            )


def test_evaluation_adds_up_over_the_processes(two: list[dict], one_process: None) -> None:
    alone = [step("index", tokens_of(rank))["perplexity"] for rank in range(2)]
    found = [rank["index"]["perplexity"] for rank in two]
    assert found[0] == found[1]
    assert found[0][0] == alone[0][0] + alone[1][0]
    assert found[0][1] == pytest.approx((alone[0][1] + alone[1][1]) / 2, abs=1e-12)
