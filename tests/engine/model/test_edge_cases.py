"""Named edge cases of routing, through the whole layer in float64."""

from __future__ import annotations

import pytest
import torch
from deepspeed.moe.gshard.layer import GShardMoE
from deepspeed.moe.gshard.routing import RoutingRule, route
from deepspeed.moe.lm import MoELM, MoELMConfig

M = 4
INF, NAN = float("inf"), float("nan")

pytestmark = pytest.mark.usefixtures("one_process")


def identity_layer(num_experts: int, **changes: object) -> GShardMoE:
    """Experts that return their input; the gate's weight is the identity where it can be."""
    arguments = {"min_capacity": 1, "second_expert_policy": "all", **changes}
    moe = GShardMoE(M, num_experts, M, experts=torch.nn.Identity(), **arguments).double()
    with torch.no_grad():
        moe.deepspeed_moe.gate.wg.weight.copy_(torch.eye(num_experts, M))
    return moe


def both_forms(num_experts: int, x: torch.Tensor, **changes: object) -> torch.Tensor:
    """The output by index, after checking that the product form's is equal."""
    out, stats = identity_layer(num_experts, **changes).deepspeed_moe(x)
    other, _ = identity_layer(num_experts, product_form=True, **changes).deepspeed_moe(x)
    torch.testing.assert_close(out, other, rtol=0, atol=1e-12)
    assert out.shape == x.shape and bool(torch.isfinite(stats.aux_loss))
    return out


def test_all_tokens_to_one_expert() -> None:
    """Capacity ceil(8 / 4) = 2: the first two tokens pass, the others come out as 0."""
    x = torch.tensor([[9.0, 0, 0, 0]], dtype=torch.float64).repeat(8, 1)
    out = both_forms(4, x, k=1)
    gate = x[0].softmax(0)[0]
    torch.testing.assert_close(out[:2], gate * x[:2])
    assert not out[2:].any()


def test_ties_go_to_the_lowest_experts() -> None:
    routing = route(torch.zeros(1, 5, 3), 5, RoutingRule())
    assert routing.expert_KGS[:, 0].tolist() == [[0] * 5, [1] * 5]
    assert routing.slot_KGS[:, 0].tolist() == [list(range(5))] * 2


def test_capacity_1_keeps_the_first_token_of_each_expert() -> None:
    """Experts 1, 2 are full of first choices; experts 0 and 3 of the earliest second ones."""
    logits = torch.tensor([[[1.0, 2, 0, 0], [0, 2, 1, 0], [0, 0, 2, 1], [0, 1, 2, 0]]])
    routing = route(logits, 1, RoutingRule())
    assert routing.kept_KGS[0, 0].tolist() == [True, False, True, False]
    assert routing.kept_KGS[1, 0].tolist() == [True, False, True, False]
    assert float(routing.dropped_share) == 0.5


def test_fewer_tokens_than_experts_are_all_kept() -> None:
    x = torch.randn(2, M, dtype=torch.float64)
    torch.testing.assert_close(both_forms(7, x, min_capacity=4), x)


def test_tokens_not_divisible_by_the_group() -> None:
    """Groups of 4, 4 and 2 tokens with two slots each: in each, two tokens of expert 0 pass."""
    x = torch.tensor([[9.0, 0, 0, 0]], dtype=torch.float64).repeat(10, 1)
    out = both_forms(2, x, k=1, group_size=4)
    assert out.any(1).tolist() == [True, True, False, False] * 2 + [True, True]


def test_group_larger_than_the_micro_batch_keeps_its_capacity() -> None:
    """A group of 8 has 4 slots for each of 2 experts; 3 tokens of one expert all fit."""
    x = torch.tensor([[9.0, 0, 0, 0]], dtype=torch.float64).repeat(3, 1)
    assert both_forms(2, x, k=1, group_size=8).any(1).tolist() == [True] * 3


def test_one_expert_gets_every_token() -> None:
    x = torch.randn(5, M, dtype=torch.float64)
    torch.testing.assert_close(both_forms(1, x, k=1), x)


def test_a_single_token_is_routed() -> None:
    x = torch.randn(1, M, dtype=torch.float64)
    torch.testing.assert_close(both_forms(4, x), x)


def test_an_empty_micro_batch_has_zero_gradients() -> None:
    """No output, balance loss 0, and gradients that exist and are 0."""
    moe = GShardMoE(M, 4, 8).double()
    x = torch.zeros(0, 3, M, dtype=torch.float64, requires_grad=True)
    out, stats = moe.deepspeed_moe(x)
    assert out.shape == x.shape
    assert float(stats.aux_loss) == 0 and float(stats.dropped_share) == 0
    (out.sum() + stats.aux_loss).backward()
    for parameter in moe.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_an_empty_micro_batch_of_the_model_has_loss_0() -> None:
    tokens = torch.zeros(0, 8, dtype=torch.int64)
    loss = model()(tokens, tokens)
    loss.backward()
    assert float(loss) == 0


def test_no_token_used() -> None:
    moe = GShardMoE(M, 4, 8).double()
    out, stats = moe.deepspeed_moe(torch.randn(6, M).double(), torch.zeros(6, dtype=torch.bool))
    assert not out.any() and float(stats.aux_loss) == 0 and float(stats.dropped_share) == 0


def test_every_other_expert_at_minus_infinity_leaves_no_second_choice() -> None:
    logits = torch.tensor([[[1.0, -INF, -INF], [-INF, 1.0, -INF]]])
    routing = route(logits, 2, RoutingRule())
    assert routing.kept_KGS[:, 0].tolist() == [[True, True], [False, True]]
    assert routing.weight_KGS[:, 0].tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("position", [0, 7])
def test_a_bad_token_shows_in_its_output_and_the_loss_and_nowhere_else(
    bad: float, position: int
) -> None:
    """Also in the last position, where expert 0 has long been full and the token is dropped."""
    moe = identity_layer(2, k=1, capacity_factor=0.5)
    x = torch.tensor([[3.0, 1, 0, 0]], dtype=torch.float64).repeat(8, 1)
    x[position, 0] = bad
    out, stats = moe.deepspeed_moe(x)
    assert not torch.isfinite(out[position]).all()
    others = torch.arange(8) != position
    assert torch.isfinite(out[others]).all()
    assert torch.isnan(stats.aux_loss)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_bad_expert_output_shows_in_the_tokens_it_serves_alone(bad: float) -> None:
    class Bad(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:1], torch.full_like(x[1:], bad)])

    moe = GShardMoE(2, 2, 2, k=1, experts=Bad(), capacity_factor=1.0, min_capacity=1).double()
    with torch.no_grad():
        moe.deepspeed_moe.gate.wg.weight.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0]], dtype=torch.float64)
    out, _ = moe.deepspeed_moe(x)
    assert torch.isfinite(out).all(1).tolist() == [True, False, True, True]
    assert not out[3].any(), "a dropped token must not read a slot at all"


def model(**changes: object) -> MoELM:
    sizes = {"hidden_size": 16, "num_layers": 2, "num_experts": 4, "num_heads": 2}
    return MoELM(MoELMConfig(vocab_size=32, sequence_length=8, **{**sizes, **changes}), seed=1)


@pytest.mark.parametrize("implementation", ["index", "einsum"])
@pytest.mark.parametrize("where", ["embedding", "gate", "expert"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_weights_reach_the_loss(implementation: str, where: str, bad: float) -> None:
    lm = model(moe_implementation=implementation)
    moe = lm.layers[1].ffn.deepspeed_moe
    target = {
        "embedding": lm.embedding.weight[3],
        "gate": moe.gate.wg.weight[2],
        "expert": moe.experts.stacked.w2[1],
    }[where]
    with torch.no_grad():
        target.view(-1)[0] = bad
    tokens = torch.arange(32).reshape(4, 8)
    assert not torch.isfinite(lm(tokens, tokens.roll(1, 1)))
