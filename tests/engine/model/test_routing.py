"""Algorithm 1 against loops in NumPy, and its random policies against their distributions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from deepspeed.moe.gshard.product_form import product_form
from deepspeed.moe.gshard.routing import (
    RoutingRule,
    expert_capacity,
    route,
    running_count,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from support import oracle_numpy as oracle

TOLERANCE = 1e-12


@st.composite
def cases(draw: st.DrawFn) -> dict:
    top_k = draw(st.integers(1, 2))
    experts = draw(st.integers(top_k, 6))
    groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    return {
        "shape": (groups, size, experts),
        "capacity": draw(st.integers(1, size)),
        "top_k": top_k,
        "policy": draw(st.sampled_from(["all", "random", "sampling"])),
        "renormalize": draw(st.sampled_from(["kept", "chosen"])),
        "masked": draw(st.booleans()),
        "ties": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


@settings(deadline=None, max_examples=150)
@given(cases())
def test_routing_equals_the_oracles_loops(case: dict) -> None:
    random = np.random.default_rng(case["seed"])
    groups, size, experts = case["shape"]
    logits = random.normal(size=case["shape"]) * 2
    if case["ties"]:
        logits = np.round(logits)
    used = random.random((groups, size)) < 0.7 if case["masked"] else None
    noise = None
    if case["top_k"] == 2 and case["policy"] != "all":
        noise = random.random((groups, size))
        if case["policy"] == "sampling":
            noise = random.gumbel(size=case["shape"])
    expected = [
        oracle.route_group(
            logits[g],
            case["capacity"],
            case["top_k"],
            case["policy"],
            case["renormalize"],
            None if used is None else used[g],
            None if noise is None else noise[g],
        )
        for g in range(groups)
    ]
    found = route(
        torch.from_numpy(logits),
        case["capacity"],
        RoutingRule(case["top_k"], case["policy"], case["renormalize"]),
        None if used is None else torch.from_numpy(used),
        None if noise is None else torch.from_numpy(noise),
    )
    for g, group in enumerate(expected):
        for k, choices in enumerate([group.first, group.second][: case["top_k"]]):
            for choice in choices:
                at = (k, g, choice.token)
                assert bool(found.kept_KGS[at]) == choice.kept
                assert float(found.weight_KGS[at]) == pytest.approx(choice.weight, abs=TOLERANCE)
                assert int(found.expert_KGS[at]) == choice.expert
                if choice.kept:
                    assert int(found.slot_KGS[at]) == choice.slot
    aux, z = oracle.losses(expected)
    assert float(found.aux_loss) == pytest.approx(aux, abs=TOLERANCE)
    assert float(found.z_loss) == pytest.approx(z, abs=TOLERANCE)
    assert found.expert_load_E.tolist() == [
        sum(g.load[e] for g in expected) for e in range(experts)
    ]
    assert float(found.dropped_share) == pytest.approx(oracle.dropped_share(expected))

    combine, mask = product_form(found)
    assert combine.shape == (groups, size, experts, case["capacity"])
    kept = {
        (g, c.token, c.expert, c.slot): c.weight
        for g, group in enumerate(expected)
        for c in group.first + group.second
        if c.kept
    }
    assert {tuple(i) for i in mask.nonzero().tolist()} == set(kept)
    for place, weight in kept.items():
        assert float(combine[place]) == pytest.approx(weight, abs=TOLERANCE)


def test_second_choices_come_after_all_first_ones() -> None:
    """Token 0's second choice is expert 1, which token 1 chose first: token 1 has slot 0."""
    logits = torch.tensor([[[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]]])
    routing = route(logits, 2, RoutingRule())
    assert routing.expert_KGS[:, 0].tolist() == [[0, 1], [1, 0]]
    assert routing.slot_KGS[:, 0].tolist() == [[0, 0], [1, 1]]


def test_an_untried_second_choice_takes_no_slot() -> None:
    logits = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]], dtype=torch.float64)
    noise = torch.tensor([[1.0, 0.0]], dtype=torch.float64)  # never, always
    routing = route(logits, 1, RoutingRule(2, "random", "kept"), noise=noise)
    assert routing.kept_KGS[:, 0].tolist() == [[True, True], [False, True]]
    assert float(routing.weight_KGS[0, 0, 0]) == 1.0
    chosen = route(logits, 1, RoutingRule(2, "random", "chosen"), noise=noise)
    assert float(chosen.weight_KGS[0, 0, 0]) == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.1, 1.25, 2.0])
def test_capacity_is_the_ceiling_of_the_exact_product(factor: float) -> None:
    for size in (1, 7, 100, 1024):
        for experts in (1, 3, 10, 128):
            for top_k in (1, 2):
                exact = math.ceil(Fraction(top_k * size) * Fraction(str(factor)) / experts)
                wanted = min(max(exact, 4), size)
                assert expert_capacity(size, experts, top_k, factor, 4) == wanted


def test_balance_loss_is_1_for_a_uniform_router_and_E_for_a_collapsed_one() -> None:
    uniform = torch.eye(4, dtype=torch.float64).repeat(3, 1)[None] * 1e-9
    assert float(route(uniform, 12, RoutingRule()).aux_loss) == pytest.approx(1, abs=1e-8)
    collapsed = torch.tensor([[[50.0, 0, 0, 0]] * 12], dtype=torch.float64)
    assert float(route(collapsed, 12, RoutingRule()).aux_loss) == pytest.approx(4, abs=1e-8)


def _chi_square(counts: list[float], shares: list[float]) -> float:
    total = sum(counts)
    return sum((c - total * p) ** 2 / (total * p) for c, p in zip(counts, shares))


LOGITS = torch.tensor([1.2, 0.1, -0.4, 0.8, -1.0], dtype=torch.float64)
TOKENS = 20000


def test_random_policy_tries_the_second_expert_with_probability_2_g2() -> None:
    """Chi-square with 1 degree of freedom; 10.83 is exceeded once in 1000 seeds."""
    torch.manual_seed(11)
    rule = RoutingRule(2, "random")
    routing = route(LOGITS.expand(1, TOKENS, -1), TOKENS, rule)
    tried = int(routing.kept_KGS[1].sum())
    g1, g2 = math.exp(1.2), math.exp(0.8)
    share = 2 * g2 / (g1 + g2)
    assert routing.expert_KGS[1].unique().tolist() == [3]
    assert _chi_square([tried, TOKENS - tried], [share, 1 - share]) < 10.83


def test_sampling_policy_draws_the_second_expert_by_the_gates_of_the_others() -> None:
    """Chi-square with 3 degrees of freedom; 16.27 is exceeded once in 1000 seeds."""
    torch.manual_seed(12)
    routing = route(LOGITS.expand(1, TOKENS, -1), TOKENS, RoutingRule(2, "sampling"))
    counts = torch.bincount(routing.expert_KGS[1, 0], minlength=5).tolist()
    gates = LOGITS.exp()
    assert counts[0] == 0
    assert _chi_square(counts[1:], (gates[1:] / gates[1:].sum()).tolist()) < 16.27
    assert bool(routing.kept_KGS.all())


def test_sample_first_draws_the_expert_by_the_gates() -> None:
    """Chi-square with 4 degrees of freedom; 18.47 is exceeded once in 1000 seeds."""
    torch.manual_seed(13)
    rule = RoutingRule(1, sample_first=True)
    routing = route(LOGITS.expand(1, TOKENS, -1), TOKENS, rule)
    counts = torch.bincount(routing.expert_KGS[0, 0], minlength=5).tolist()
    assert _chi_square(counts, LOGITS.softmax(0).tolist()) < 18.47


@pytest.mark.parametrize("length", [1, 256, 300, 512, 1024])
def test_running_count_by_blocks_is_cumsum(length: int) -> None:
    x = torch.randint(0, 2, (2, 3, length), dtype=torch.int32)
    found = running_count(x)
    assert found.dtype == torch.int32
    assert torch.equal(found.long(), x.long().cumsum(-1))


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("renormalize", ["kept", "chosen"])
def test_gradients_of_weights_and_losses(top_k: int, renormalize: str) -> None:
    """Finite differences (torch.autograd.gradcheck, float64, its tolerances 1e-5 and 1e-3)."""
    torch.manual_seed(14)
    logits = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    used = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)

    def outputs(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        routing = route(x, 2, RoutingRule(top_k, "all", renormalize), used)
        return routing.weight_KGS, routing.aux_loss, routing.z_loss

    assert torch.autograd.gradcheck(outputs, (logits,))
