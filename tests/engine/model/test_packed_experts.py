"""Experts on packed rows (deepspeed/moe/packed) against padded ones, by formulas on the CPU.

tests/gpu/test_packed_kernels.py has the kernels of a GPU.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.moe.gshard.dispatch import combine, dispatch, slot_indices
from deepspeed.moe.gshard.layer import GShardMoE
from deepspeed.moe.gshard.routing import RoutingRule, route
from deepspeed.moe.kernels import policy
from deepspeed.moe.packed import operators
from deepspeed.moe.packed.feed_forward import packed_feed_forward

pytestmark = pytest.mark.skipif(not policy.HAS_OPERATORS, reason="torch has no custom operators")


class Packing(policy.KernelPolicy):
    """Packs rows wherever experts are all on this process."""

    def __init__(self) -> None:
        super().__init__(policy.Libraries())
        self.asked = 0

    def packs_rows(self, x: torch.Tensor, ffn_size: int) -> bool:
        self.asked += 1
        return True


def results(layer: GShardMoE, x: torch.Tensor, used: torch.Tensor | None) -> list[torch.Tensor]:
    """Output, balance loss and all gradients."""
    layer, x = copy.deepcopy(layer), x.clone().requires_grad_()
    torch.manual_seed(3)  # the second expert is drawn
    y, aux, _ = layer(x, used)
    (y.square().sum() + aux).backward()
    return [y, aux, x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("group_size", [None, 16, 20])
@pytest.mark.parametrize("factor, drop", [(1.0, True), (0.5, True), (1.0, False)])
@pytest.mark.parametrize("partly_used", [False, True])
def test_packed_rows_give_the_results_of_padded_ones(
    one_process: None, group_size: int | None, factor: float, drop: bool, partly_used: bool
) -> None:
    torch.manual_seed(0)
    layer = GShardMoE(
        8, 4, 16, capacity_factor=factor, min_capacity=1, group_size=group_size, drop_tokens=drop
    ).double()
    with torch.no_grad():  # an expert that nobody chooses, and biases that are not 0
        layer.deepspeed_moe.gate.wg.weight[2] = 0
        for bias in (
            layer.deepspeed_moe.experts.stacked.b1,
            layer.deepspeed_moe.experts.stacked.b2,
        ):
            bias.normal_()
    x = torch.randn(48, 8, dtype=torch.float64)
    used = torch.arange(48) % 5 != 0 if partly_used else None
    padded = results(layer, x, used)
    with policy.using(Packing()) as kernels:
        packed = results(layer, x, used)
    assert kernels.asked
    for found, expected in zip(packed, padded):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_packed_slots_are_the_first_rows_without_a_gap() -> None:
    torch.manual_seed(1)
    routing = route(3 * torch.randn(3, 16, 5), 6, RoutingRule())
    slots = slot_indices(routing, packed=True)
    first = slots.first_row_E1.tolist()
    kept = int(routing.kept_KGS.sum())
    assert first[0] == 0 and first[-1] == kept < 5 * 3 * 6, "some slots are empty"
    assert slots.filled_R.tolist() == [row < kept for row in range(5 * 3 * 6)]
    experts = routing.expert_KGS.reshape(2, -1)
    for expert in range(5):
        rows = slots.slot_KN[slots.kept_KN & (experts == expert)]
        assert sorted(rows.tolist()) == list(range(first[expert], first[expert + 1]))
    x = torch.randn(48, 3)
    rows = dispatch(x, slots)
    assert rows.shape == (90, 3) and not rows[kept:].any()
    weight = routing.weight_KGS.reshape(2, -1)
    by_padded = slot_indices(routing)
    torch.testing.assert_close(
        combine(rows, weight, slots), combine(dispatch(x, by_padded), weight, by_padded)
    )


def test_operators_have_the_gradients_of_their_formula() -> None:
    torch.manual_seed(2)
    first = torch.tensor([0, 3, 3, 8], dtype=torch.int32)
    x = torch.randn(10, 4, dtype=torch.float64)
    weights = [
        torch.randn(3, *shape, dtype=torch.float64) for shape in ((4, 6), (6,), (6, 4), (4,))
    ]
    leaves = [leaf.requires_grad_() for leaf in (x, *weights)]

    def filled(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return packed_feed_forward(x, first, *weights)[:8]

    with policy.using(policy.KernelPolicy(policy.Libraries())):
        assert torch.autograd.gradcheck(lambda x, *w: filled(x, w[0], w[1], w[2], w[3]), leaves)


def wrong(name: str) -> Any:
    """A library whose ``name`` is not what it should be; the rest is right."""

    def gelu(x: Any, w: Any, b: Any, a: Any, k: Any, first: Any) -> None:
        with policy.using(policy.KernelPolicy(policy.Libraries())):
            found = operators.up(x, first, w, b)
        a.copy_(found[0] * (1.5 if name == "gelu" else 1))
        k.copy_(found[1])

    def product(x: Any, w: Any, b: Any, y: Any, first: Any) -> None:
        with policy.using(policy.KernelPolicy(policy.Libraries())):
            y.copy_(operators.product(x, first, w, b, False) * (1.5 if name == "product" else 1))

    def weight_gradient(x: Any, dy: Any, dw: Any, first: Any) -> None:
        with policy.using(policy.KernelPolicy(policy.Libraries())):
            right = operators.weight_gradient(x, first, dy)
        dw.copy_(right * (1.5 if name == "weight gradient" else 1))

    def times_slope(dy: Any, w: Any, k: Any, dh: Any, first: Any) -> Any:
        with policy.using(policy.KernelPolicy(policy.Libraries())):
            found, sums = operators.down(dy, first, w.mT.contiguous(), k)
        dh.copy_(found)
        return sums * (1.5 if name == "gelu'" else 1)

    return SimpleNamespace(
        supports_operands=lambda *tensors: True,
        gelu=gelu,
        product=product,
        weight_gradient_packed=weight_gradient,
        times_slope_packed=times_slope,
    )


@pytest.mark.parametrize("name", ["gelu", "product", "weight gradient", "gelu'", ""])
def test_a_wrong_first_result_of_the_library_is_an_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    first = torch.tensor([0, 40, 40, 90], dtype=torch.int32)
    x = torch.randn(100, 8, requires_grad=True)
    weights = [torch.randn(3, *shape) for shape in ((8, 16), (16,), (16, 8), (8,))]

    def pass_through() -> None:
        y = packed_feed_forward(x, first, *(weight.requires_grad_() for weight in weights))
        y[:90].sum().backward()

    with policy.using(policy.KernelPolicy(policy.Libraries(hopper=wrong(name)))):
        if not name:
            pass_through()
            return
        with pytest.raises(RuntimeError, match=f"packed {name}.*away from torch's"):
            pass_through()
