"""Index dispatch: against the product form, finite differences and the identity."""

from __future__ import annotations

import pytest
import torch
from deepspeed.moe.gshard.dispatch import combine, dispatch, slot_indices
from deepspeed.moe.gshard.product_form import product_form
from deepspeed.moe.gshard.routing import Routing, RoutingRule, route
from hypothesis import given, settings
from hypothesis import strategies as st

TOLERANCE = 1e-12


def routed(
    groups: int, size: int, experts: int, capacity: int, seed: int, top_k: int = 2
) -> tuple[torch.Tensor, torch.Tensor, Routing]:
    """Tokens [N, 3], logits that need a gradient, and their routing."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups * size, 3, dtype=torch.float64, generator=generator)
    logits = torch.randn(groups, size, experts, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    return x.requires_grad_(), logits, route(logits, capacity, RoutingRule(top_k))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(2, 5), st.integers(1, 2), st.data())
def test_dispatch_by_index_equals_the_product_form(
    groups: int, size: int, experts: int, top_k: int, data: st.DataObject
) -> None:
    capacity = data.draw(st.integers(1, size))
    x, logits, routing = routed(groups, size, experts, capacity, size, top_k)
    factor = torch.randn(experts, 1, 3, dtype=torch.float64, requires_grad=True)
    loss_weight = torch.randn(groups * size, 3, dtype=torch.float64)

    slots = slot_indices(routing)
    weights = routing.weight_KGS.reshape(top_k, -1)
    by_index = combine(torch.tanh(dispatch(x, slots) * factor), weights, slots)
    leaves = (x, logits, factor)
    index_gradients = torch.autograd.grad((by_index * loss_weight).sum(), leaves, retain_graph=True)

    combine_GSEC, mask = product_form(routing)
    x_GSM = x.reshape(groups, size, 3)
    inputs = torch.einsum("gsec,gsm->egcm", mask.double(), x_GSM).reshape(experts, -1, 3)
    outputs = torch.tanh(inputs * factor).reshape(experts, groups, capacity, 3)
    by_products = torch.einsum("gsec,egcm->gsm", combine_GSEC, outputs).reshape(-1, 3)
    product_gradients = torch.autograd.grad((by_products * loss_weight).sum(), leaves)

    torch.testing.assert_close(by_index, by_products, rtol=0, atol=TOLERANCE)
    for found, expected in zip(index_gradients, product_gradients):
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_gradcheck_of_dispatch_and_combine() -> None:
    """Each alone, then gating, dispatch and combine together, with dropped tokens among them."""
    x, logits, routing = routed(2, 4, 3, 2, seed=3)
    assert 0 < float(routing.dropped_share) < 1
    slots = slot_indices(routing)
    weights = routing.weight_KGS.detach().reshape(2, -1).requires_grad_()
    y = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dispatch(x, slots), (x,))
    assert torch.autograd.gradcheck(lambda y, w: combine(y, w, slots), (y, weights))

    def whole(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        routing = route(logits, 2, RoutingRule())
        slots = slot_indices(routing)
        return combine(dispatch(x, slots).sin(), routing.weight_KGS.reshape(2, -1), slots)

    assert torch.autograd.gradcheck(whole, (x, logits))


@pytest.mark.parametrize("capacity", [1, 2, 6])
def test_identity_experts_return_the_input_of_every_token_that_was_kept(capacity: int) -> None:
    x, _, routing = routed(2, 6, 3, capacity, seed=5)
    slots = slot_indices(routing)
    out = combine(dispatch(x, slots), routing.weight_KGS.reshape(2, -1), slots)
    kept = routing.kept_KGS.reshape(2, -1).any(0)
    torch.testing.assert_close(out[kept], x[kept], rtol=0, atol=TOLERANCE)
    assert not out[~kept].any()
    assert bool(kept.all()) == (capacity == 6)


def test_rows_and_choices_are_each_others_inverse() -> None:
    x, _, routing = routed(3, 8, 4, 3, seed=6)
    slots = slot_indices(routing)
    filled, kept = slots.slot_KN.reshape(-1), slots.kept_KN.reshape(-1)
    assert slots.choice_R[filled[kept]].tolist() == kept.nonzero()[:, 0].tolist()
    assert int(slots.filled_R.sum()) == int(kept.sum()) == len(set(filled[kept].tolist()))
    rows = dispatch(x, slots).reshape(-1, 3)
    assert bool(rows[slots.filled_R].all()) and not rows[~slots.filled_R].any(), "empty rows are 0"
    assert not bool(slots.filled_R.all())


def test_half_precision_output_is_summed_in_fp32() -> None:
    """Bit for bit: products and sum in fp32, rounded to bf16 once."""
    torch.manual_seed(7)
    logits = torch.randn(1, 64, 4)
    routing = route(logits, 64, RoutingRule())
    slots = slot_indices(routing)
    y = torch.randn(4, 64, 8).to(torch.bfloat16)
    out = combine(y, routing.weight_KGS.reshape(2, -1), slots)
    rows = y.reshape(-1, 8).float()[slots.slot_KN]
    exact = (rows * routing.weight_KGS.reshape(2, -1, 1)).sum(0)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, exact.to(torch.bfloat16))
