"""FP8 feed-forward layers against float64, on a GPU where there is one, else by the formulas."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from deepspeed.moe.fp8 import operators, quantise
from deepspeed.moe.fp8.feed_forward import feed_forward
from deepspeed.moe.kernels.feed_forward import feed_forward as sixteen_bit
from deepspeed.moe.kernels.policy import HAS_OPERATORS
from deepspeed.moe.lm import MoELM, MoELMConfig
from torch import Tensor

pytestmark = pytest.mark.skipif(
    quantise.FORMAT is None or not HAS_OPERATORS, reason="torch has no FP8, or no operators"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
# Relative, of norms. e4m3 rounds by at most 2^-4, by 0.026 in the mean over a binade; a product of
# two rounded operands is 0.037 away, and one more rounding on the way (of GELU's result, of the
# hidden gradient) makes it 0.045 to 0.06. Seen: 0.052 to 0.061.
OF_A_LAYER = 0.08
# An operator on FP8 values: its sums are exact to this, and it rounds once.
OF_AN_OPERATOR = {torch.float32: 1e-5, torch.bfloat16: 4e-3}


def distance(found: Tensor, right: Tensor) -> float:
    return float((found.detach().double() - right).norm() / right.norm())


def layer_inputs(
    sizes: tuple[int, int, int, int], transposed: bool, scale: float = 1.0
) -> list[Tensor]:
    """x, w1, b1, w2 for E, R, M, H."""
    experts, rows, width, hidden = sizes
    first, second = (experts, width, hidden), (experts, hidden, width)
    if transposed:
        first, second = second, first
    shapes = ((experts, rows, width), first, (experts, hidden), second)
    sizes_of = (scale, 0.1, 0.1, 0.1)
    made = [torch.randn(s, device=DEVICE) * size for s, size in zip(shapes, sizes_of)]
    return [one.to(DTYPE).requires_grad_() for one in made]


def in_float64(inputs: list[Tensor], transposed: bool, dy: Tensor) -> list[Tensor]:
    """The layer's result and its four gradients."""
    x, w1, b1, w2 = (one.detach().double().requires_grad_() for one in inputs)
    first, second = (w1.transpose(1, 2), w2.transpose(1, 2)) if transposed else (w1, w2)
    y = torch.bmm(F.gelu(torch.bmm(x, first) + b1[:, None], approximate="tanh"), second)
    return [y.detach(), *torch.autograd.grad(y, (x, w1, b1, w2), dy.double())]


@pytest.mark.parametrize("rows", [64, 7], ids=["64 rows", "rows padded to 16"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_and_its_gradients_are_within_what_fp8_rounds(
    rows: int, transposed: bool, compiled: bool
) -> None:
    torch.manual_seed(0)
    inputs = layer_inputs((3, rows, 32, 64), transposed)
    dy = (torch.randn(3, rows, 32, device=DEVICE) * 1e-4).to(DTYPE)
    function: Any = feed_forward
    if compiled:
        torch.compiler.reset()
        function = torch.compile(feed_forward, backend="aot_eager", fullgraph=True)
    y = function(*inputs, transposed)
    assert y.shape == inputs[0].shape and y.dtype == DTYPE
    found = [y, *torch.autograd.grad(y, inputs, dy)]
    for one, right in zip(found, in_float64(inputs, transposed, dy)):
        assert 0 < distance(one, right) < OF_A_LAYER


def fp8(*shape: int, size: float = 8.0) -> Tensor:
    return (torch.randn(shape, device=DEVICE) * size).to(quantise.FORMAT)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, device=DEVICE)


def values(small: Tensor) -> Tensor:
    return small.float().double()


@pytest.mark.parametrize("long", [False, True])
def test_a_product_has_exact_sums(long: bool) -> None:
    torch.manual_seed(1)
    a, b = fp8(2, 48, 160), fp8(2, 32, 160)
    found = operators.product(a, b, scalar(2**-6), DTYPE, long=long)
    right = torch.bmm(values(a), values(b).transpose(1, 2)) * 2**-6
    # the tensor cores' own sums keep 13 bits or so, which is less than bf16 rounds
    assert distance(found, right) < OF_AN_OPERATOR[DTYPE]


def test_long_sums_of_one_sign_lose_nothing() -> None:
    """The tensor cores' own sum of these is 40 % off (docs/lab/fp8.md): weights' gradients."""
    torch.manual_seed(2)
    small = [fp8(1, 32, 32768).float().abs().to(quantise.FORMAT) for _ in range(2)]
    found = operators.product(*small, scalar(2**-10), DTYPE, long=True)
    right = torch.bmm(values(small[0]), values(small[1]).transpose(1, 2)) * 2**-10
    assert distance(found, right) < OF_AN_OPERATOR[DTYPE]


def test_up_writes_gelu_twice_and_its_slope() -> None:
    torch.manual_seed(3)
    x, w = fp8(2, 64, 32), fp8(2, 96, 32)
    b = torch.randn(2, 96, device=DEVICE).to(DTYPE)
    rows, columns, slope = operators.up(x, w, b, scalar(2**-9), scalar(16.0))
    h = torch.bmm(values(x), values(w).transpose(1, 2)) * 2**-9 + b.double()[:, None]
    assert distance(values(rows) / 16, F.gelu(h, approximate="tanh")) < 0.035
    assert torch.equal(rows.float(), columns.transpose(1, 2).float())
    right = torch.ops.aten.gelu_backward(torch.ones_like(h), h, approximate="tanh")
    assert distance(slope, right) < OF_AN_OPERATOR[DTYPE]


def test_down_multiplies_by_the_slope_and_sums_the_bias_exactly() -> None:
    torch.manual_seed(4)
    dy, w = fp8(2, 64, 32), fp8(2, 96, 32)
    slope = torch.rand(2, 64, 96, device=DEVICE).to(DTYPE)
    rows, columns, total = operators.down(dy, w, slope, scalar(2**-9), scalar(32.0))
    dh = torch.bmm(values(dy), values(w).transpose(1, 2)) * 2**-9 * slope.double()
    assert distance(values(rows) / 32, dh) < 0.035
    assert torch.equal(rows.float(), columns.transpose(1, 2).float())
    assert distance(total, dh.sum(1)) < OF_AN_OPERATOR[DTYPE]


@pytest.mark.parametrize("bound", [1.0, 448.0, 448.1, 3e-38, 1e-20, 3e38, 0.7])
def test_a_scale_is_the_largest_power_of_two_that_fits(bound: float) -> None:
    scale = float(quantise.scale_for(torch.tensor(bound)))
    assert math.frexp(scale)[0] == 0.5
    assert scale * bound <= 448.0001
    assert 2 * scale * bound > 448 or scale == 2.0**126


@pytest.mark.parametrize(("bound", "scale"), [(0.0, 1.0), (math.inf, math.nan), (math.nan,) * 2])
def test_scales_of_no_bound(bound: float, scale: float) -> None:
    found = float(quantise.scale_for(torch.tensor(bound)))
    assert found == scale or (math.isnan(found) and math.isnan(scale))


@pytest.mark.parametrize("seed", range(6))
def test_no_product_is_larger_than_its_bound(seed: int) -> None:
    """Aligned operands, which reach the bound of Cauchy and Schwarz, among them."""
    torch.manual_seed(seed)
    x = torch.randn(1, 16, 32) * 10.0 ** torch.randint(-9, 9, (1, 16, 1))
    w = x[:, :16] * 3 if seed % 2 else torch.randn(1, 48, 32)
    first, second = quantise.quantise(x), quantise.quantise(w)
    found = torch.bmm(values(first.rows_ERK), values(second.rows_ERK).transpose(1, 2))
    largest = (found / (first.scale * second.scale)).abs().max() + 0.5
    scale = quantise.bounded_scale(first.norm, second.norm, 0.5)
    assert largest * scale <= 448


@pytest.mark.parametrize("planted", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", [0, 1, 2, 3, "dy"])
def test_what_is_not_finite_stays_visible(planted: float, where: int | str) -> None:
    torch.manual_seed(5)
    inputs = layer_inputs((2, 16, 32, 64), False)
    dy = torch.randn(2, 16, 32, device=DEVICE).to(DTYPE)
    with torch.no_grad():
        (dy if where == "dy" else inputs[int(where)])[0, 0, ...].view(-1)[0] = planted
    y = feed_forward(*inputs)
    gradients = torch.autograd.grad(y, inputs, dy)
    assert bool(y.isfinite().all()) == (where == "dy")
    assert not all(one.isfinite().all() for one in gradients)


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1e6])
def test_small_and_large_numbers_are_as_exact_as_others(size: float) -> None:
    torch.manual_seed(6)
    inputs = layer_inputs((2, 32, 32, 64), False, scale=min(size, 2.0))
    dy = (torch.randn(2, 32, 32, device=DEVICE) * size).to(DTYPE)
    y = feed_forward(*inputs)
    found = [y, *torch.autograd.grad(y, inputs, dy)]
    for number, (one, right) in enumerate(zip(found, in_float64(inputs, False, dy))):
        assert one.isfinite().all()
        assert distance(one, right) < OF_A_LAYER, number


def test_no_rows_have_no_result() -> None:
    inputs = layer_inputs((2, 0, 32, 64), False)
    assert feed_forward(*inputs).shape == (2, 0, 32)


def model_of(**changes: Any) -> MoELM:
    sizes = {
        "hidden_size": 32,
        "num_layers": 2,
        "num_experts": 2,
        "num_heads": 2,
        "vocab_size": 64,
        "sequence_length": 16,
    }
    torch.manual_seed(7)
    return MoELM(MoELMConfig(**{**sizes, **changes})).to(DEVICE, DTYPE)


def test_training_is_in_fp8_and_evaluation_is_not(one_process: None) -> None:
    plain, small = model_of(), model_of(fp8=True)
    tokens = torch.randint(0, 64, (2, 4, 16), device=DEVICE)
    losses = []
    for model in (plain, small):
        model.load_state_dict(plain.state_dict())
        losses.append((float(model.eval()(*tokens)), float(model.train()(*tokens))))
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]
    assert losses[0][1] == pytest.approx(losses[1][1], rel=2e-2)


def test_fifty_steps_go_the_same_way_as_in_16_bit(one_process: None) -> None:
    curves = []
    text = torch.arange(17, device=DEVICE).repeat(4, 4) * 5 % 61
    for fp8_products in (False, True):
        model = model_of(fp8=fp8_products)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        curve = []
        for step in range(50):
            at = step % 17
            loss = model(text[:, at : at + 16], text[:, at + 1 : at + 17])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(float(loss))
        curves.append(curve)
    assert curves[0][-1] < 0.8 * curves[0][0]
    # the losses of the last ten steps, in the mean
    last = [sum(curve[-10:]) / 10 for curve in curves]
    assert last[1] == pytest.approx(last[0], abs=0.05)
    assert all(math.isfinite(loss) for loss in itertools.chain(*curves))


def test_deepspeeds_own_layer_has_none() -> None:
    with pytest.raises(ValueError, match="fp8 is True; expected False with moe_implementation"):
        MoELMConfig(32, 2, 2, num_heads=2, moe_implementation="deepspeed", fp8=True)


def test_it_is_another_function_than_the_16_bit_one() -> None:
    """A layer that fell back to 16 bit would pass every test above but the first's lower bound."""
    torch.manual_seed(8)
    inputs = layer_inputs((1, 32, 32, 64), True)
    assert distance(feed_forward(*inputs, True), sixteen_bit(*inputs, True).double()) > 0.02
