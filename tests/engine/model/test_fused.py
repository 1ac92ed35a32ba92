"""Products with GELU inside, and output layer with cross-entropy, against the same written out.

Without a GPU the operators are torch's formulas, and what is tested is the gradients put together
by hand and their way through torch.compile; the kernels are tested on a GPU.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any, Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from deepspeed.moe.gshard.router import MixedProduct
from deepspeed.moe.kernels import choices, cublaslt, policy
from deepspeed.moe.kernels.causal_attention import causal_attention
from deepspeed.moe.kernels.feed_forward import feed_forward
from deepspeed.moe.kernels.linear import own_linear
from deepspeed.moe.kernels.output_loss import output_loss
from torch import Tensor

pytestmark = pytest.mark.skipif(
    not policy.HAS_OPERATORS, reason="torch has no custom operators before 2.4"
)
# Relative, of norms. 16 bit rounds inputs, results and one tensor in between.
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1e-2}


def both_ways(function: Callable[..., Tensor]) -> list[Callable[..., Tensor]]:
    torch.compiler.reset()
    return [function, torch.compile(function, backend="aot_eager", fullgraph=True)]


def gradients(result: Tensor, inputs: list[Tensor], seed: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(result, inputs, seed))


def ffn_inputs(sizes: tuple[int, ...], transposed: bool, **options: Any) -> list[Tensor]:
    """x, w1, b1, w2 for E, R, M, H."""
    experts, rows, width, hidden = sizes
    first, second = (experts, width, hidden), (experts, hidden, width)
    if transposed:
        first, second = second, first
    shapes = ((experts, rows, width), first, (experts, hidden), second)
    return [(torch.randn(s, **options) / 2).requires_grad_() for s in shapes]


def written_out(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, transposed: bool) -> Tensor:
    if transposed:
        w1, w2 = w1.transpose(1, 2), w2.transpose(1, 2)
    return torch.bmm(F.gelu(torch.bmm(x, w1) + b1[:, None], approximate="tanh"), w2)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sizes", [(3, 7, 5, 11), (1, 1, 1, 1), (2, 0, 3, 4)])
def test_feed_forward_equals_the_formula(sizes: tuple[int, ...], transposed: bool) -> None:
    torch.manual_seed(0)
    inputs = ffn_inputs(sizes, transposed, dtype=torch.float64)
    expected = written_out(*inputs, transposed)
    seed = torch.randn_like(expected)
    right = gradients(expected, inputs, seed)
    for function in both_ways(feed_forward):
        found = function(*inputs, transposed)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        for got, want in zip(gradients(found, inputs, seed), right):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(7, 5, 11), (1, 1, 1), (0, 3, 4)])
def test_linear_equals_torch(sizes: tuple[int, int, int]) -> None:
    torch.manual_seed(9)
    rows, inner, outer = sizes
    shapes = ((rows, inner), (outer, inner), (outer,))
    inputs = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]
    expected = F.linear(*inputs)
    seed = torch.randn_like(expected)
    right = gradients(expected, inputs, seed)
    for function in both_ways(own_linear):
        found = function(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        for got, want in zip(gradients(found, inputs, seed), right):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def attention_written_out(qkv_BS3ND: Tensor) -> Tensor:
    """By torch's own function, [B, S, N, D]."""
    q, k, v = qkv_BS3ND.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


@pytest.mark.parametrize("sizes", [(2, 9, 3, 4), (1, 1, 1, 1)])
def test_causal_attention_equals_torch(sizes: tuple[int, ...]) -> None:
    """For B, S, N, D."""
    torch.manual_seed(10)
    batch, length, heads, width = sizes
    qkv = torch.randn(batch, length, 3, heads, width, dtype=torch.float64).requires_grad_()
    expected = attention_written_out(qkv)
    seed = torch.randn_like(expected)
    right = gradients(expected, [qkv], seed)
    for function in both_ways(causal_attention):
        found = function(qkv)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients(found, [qkv], seed), right, rtol=1e-12, atol=1e-12)


def loss_inputs(tokens: int, vocabulary: int, width: int, **options: Any) -> list[Tensor]:
    """x, w, labels (some that do not count), shares (some 0)."""
    device = options.get("device", "cpu")
    labels = torch.randint(0, vocabulary, (tokens,), device=device)
    labels[::3] = -100
    shares = torch.rand(tokens, device=device, dtype=torch.float64)
    shares[1::4] = 0
    x, w = (torch.randn(n, width, **options).requires_grad_() for n in (tokens, vocabulary))
    return [x, w, labels, shares / shares.sum()]


def loss_written_out(x: Tensor, w: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
    return (F.cross_entropy(F.linear(x, w), labels, reduction="none") * shares).sum()


@pytest.mark.parametrize("tokens", [1, 2, 13])
def test_output_loss_equals_torch(tokens: int) -> None:
    torch.manual_seed(1)
    x, w, labels, shares = loss_inputs(tokens, 17, 5, dtype=torch.float64)
    if tokens == 1:
        labels[0] = 3
    expected = loss_written_out(x, w, labels, shares)
    seed = torch.tensor(3.0, dtype=torch.float64)
    right = gradients(expected, [x, w], seed)
    for function in both_ways(output_loss):
        found = function(x, w, labels, shares)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        for got, want in zip(gradients(found, [x, w], seed), right):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_batch_in_which_nothing_counts_has_no_loss_and_no_gradient() -> None:
    x, w, labels, shares = loss_inputs(4, 9, 3, dtype=torch.float64)
    loss = output_loss(x, w, labels, torch.zeros_like(shares))
    assert loss.item() == 0
    for gradient in gradients(loss, [x, w], torch.ones_like(loss)):
        assert gradient.abs().max() == 0


def test_small_shares_survive_fp16() -> None:
    """A share of 1/8192 times a probability of 1/1000 is no number of fp16; its sum is."""
    torch.manual_seed(2)
    x, w, labels, _ = loss_inputs(8192, 1000, 4, dtype=torch.float64)
    labels = torch.zeros_like(labels)
    shares = torch.full((8192,), 1 / 8192, dtype=torch.float64)
    right = gradients(loss_written_out(x, w, labels, shares), [x, w], shares.new_ones(()))
    low = [t.detach().half().requires_grad_() for t in (x, w)]
    loss = output_loss(*low, labels, shares.float())
    assert loss.dtype == torch.float32
    for got, want in zip(gradients(loss, low, loss.new_ones(())), right):
        error = (got.double() - want).norm() / want.norm()
        assert error < 2e-2  # of x: its own gradient is below what fp16 holds exactly


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [1.0, 1e-8])
def test_the_routers_product_keeps_small_gradients(size: float, dtype: torch.dtype) -> None:
    """The balance loss's gradient by a logit is some 1e-8: nothing in fp16, but not its sum."""
    torch.manual_seed(7)
    x, w = ((torch.randn(n, 16) + 1).to(dtype).requires_grad_() for n in (4096, 8))
    seed = (torch.randn(4096, 8) + 1) * size  # with means, that the sum over tokens is large
    found = MixedProduct.apply(x, w)
    assert found.dtype == torch.float32
    exact = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = exact[0] @ exact[1].t()
    assert relative(found, expected) < 1e-6
    right = gradients(expected, exact, seed.double())
    for got, want, kept in zip(gradients(found, [x, w], seed), right, (size == 1.0, True)):
        if kept or dtype == torch.bfloat16:
            assert relative(got, want) < TOLERANCES[dtype]


def relative(found: Tensor, right: Tensor) -> float:
    return ((found.double() - right).norm() / right.norm()).item()


def need_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none")


@pytest.fixture(params=["all", "cublas"])
def libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """All libraries of this GPU, and cuBLASLt alone."""
    need_a_gpu()
    monkeypatch.setenv(choices.VARIABLE, request.param)
    with policy.using(policy.KernelPolicy()) as new:
        found = new.libraries()
        if request.param == "all" and not (found.hopper and found.attention):
            pytest.skip(f"needs the packages of extra 'hopper' on a Hopper GPU: {found.notes}")
        yield request.param


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sizes", [(4, 512, 256, 1024), (1, 384, 768, 6144), (2, 17, 24, 40)])
def test_products_on_a_gpu(
    sizes: Any, transposed: bool, dtype: torch.dtype, libraries: str
) -> None:
    """Against float64; the kernels are the library's, which a warning would deny."""
    assert cublaslt.problem() is None
    torch.manual_seed(3)
    inputs = ffn_inputs(sizes, transposed, dtype=dtype, device="cuda")
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = written_out(*exact, transposed)
    seed = torch.randn_like(inputs[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="cuBLASLt has no kernel")
        found = feed_forward(*inputs, transposed)
        got = gradients(found, inputs, seed)
    assert relative(found, expected) < TOLERANCES[dtype]
    for one, want in zip(got, gradients(expected, exact, seed.double())):
        assert relative(one, want) < TOLERANCES[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", [(512, 768, 2304), (300, 768, 768), (17, 24, 40), (5, 7, 9)])
def test_linear_on_a_gpu(sizes: Any, dtype: torch.dtype, libraries: str) -> None:
    torch.manual_seed(11)
    rows, inner, outer = sizes
    shapes = ((rows, inner), (outer, inner), (outer,))
    inputs = [(torch.randn(s, dtype=dtype, device="cuda") / 2).requires_grad_() for s in shapes]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = F.linear(*exact)
    found = own_linear(*inputs)
    assert relative(found, expected) < TOLERANCES[dtype]
    seed = torch.randn_like(found)
    for one, want in zip(gradients(found, inputs, seed), gradients(expected, exact, seed.double())):
        assert relative(one, want) < TOLERANCES[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "sizes", [(2, 1024, 16, 48), (3, 320, 4, 64), (1, 77, 2, 128), (2, 9, 3, 8)]
)
def test_causal_attention_on_a_gpu(sizes: Any, dtype: torch.dtype, libraries: str) -> None:
    """For B, S, N, D; for a head size of 48 hopper_attention.py corrects flash-attn-4."""
    torch.manual_seed(12)
    batch, length, heads, width = sizes
    qkv = torch.randn(batch, length, 3, heads, width, dtype=dtype, device="cuda").requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    expected = attention_written_out(exact)
    found = causal_attention(qkv)
    assert relative(found, expected) < TOLERANCES[dtype]
    seed = torch.randn_like(found)
    (got,), (want,) = gradients(found, [qkv], seed), gradients(expected, [exact], seed.double())
    for one, right in zip(got.unbind(2), want.unbind(2)):
        assert relative(one, right) < TOLERANCES[dtype]


@pytest.mark.gpu
def test_gradients_too_small_for_fp16_are_no_error(libraries: str) -> None:
    """The artifact trains with loss scale 1; what is checked of the library is rounded to 0."""
    torch.manual_seed(6)
    inputs = ffn_inputs((2, 64, 32, 96), False, dtype=torch.float16, device="cuda")
    seed = torch.full_like(inputs[0], 2.0**-24)
    assert all(g.isfinite().all() for g in gradients(feed_forward(*inputs), inputs, seed))


def stand_in(
    kind: cublaslt.Product, x: Tensor, w: Tensor, out: Tensor, aux: Tensor, bias: Any
) -> bool:
    """What cublaslt.product does, by its documentation, where there is no GPU."""
    product = torch.bmm(x, w.transpose(1, 2) if kind.transposed else w)
    if kind.epilogue == cublaslt.GELU_AUX_BIAS:
        aux.copy_(product + bias[:, None])
        out.copy_(F.gelu(aux, approximate="tanh"))
    else:
        out.copy_(torch.ops.aten.gelu_backward(product, aux, approximate="tanh"))
    return True


def with_product(product: Callable[..., bool]) -> policy.KernelPolicy:
    """A policy whose one library is cuBLASLt, with another ``product``."""
    supports = cublaslt.supports_operands if torch.cuda.is_available() else lambda *tensors: True
    library: Any = SimpleNamespace(supports_operands=supports, product=product)
    return policy.KernelPolicy(policy.Libraries(cublaslt=library))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("which", ["nothing", "the result", "what GELU was given", "the second"])
def test_a_wrong_result_of_the_library_is_an_error(
    which: str, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's results are compared with the formula; on a GPU those of the real one."""
    torch.manual_seed(8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = ffn_inputs((2, 40, 16, 48), transposed, dtype=torch.bfloat16, device=device)
    if device == "cpu":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    real = stand_in if device == "cpu" else cublaslt.product
    calls = []

    def wrong(kind: Any, x: Tensor, w: Tensor, out: Tensor, aux: Tensor, bias: Any) -> bool:
        done = real(kind, x, w, out, aux, bias)
        calls.append(kind)
        places = {"the result": out, "what GELU was given": aux, "the second": out[1]}
        if which in places:
            places[which].mul_(1.5)
        return done

    with policy.using(with_product(wrong)) as used:
        if which == "nothing":
            found = feed_forward(*inputs, transposed)
            gradients(found, inputs, torch.randn_like(found))
            # the library computed both products, and both were compared
            assert {kind.epilogue for kind in calls} == {cublaslt.GELU_AUX_BIAS, cublaslt.DGELU}
            assert not any(used.first_results.due(kind) for kind in calls)
        else:
            with pytest.raises(RuntimeError, match="away from torch's"):
                feed_forward(*inputs, transposed)


def test_a_shape_without_a_kernel_falls_back_to_the_formula() -> None:
    torch.manual_seed(4)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = ffn_inputs((2, 32, 16, 64), False, dtype=torch.bfloat16, device=device)
    exact = [t.detach().double() for t in inputs]
    with policy.using(with_product(lambda *_: False)) as used:
        with pytest.warns(UserWarning, match="no kernel"):
            found = feed_forward(*inputs)
        assert relative(found, written_out(*exact, False)) < TOLERANCES[torch.bfloat16]
        assert any("GELU runs as a separate kernel" in note for note in used.notes())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("vocabulary", [50, 8192, 32000])
def test_cross_entropy_on_a_gpu(vocabulary: int, dtype: torch.dtype) -> None:
    need_a_gpu()
    torch.manual_seed(5)
    x, w, labels, shares = loss_inputs(96, vocabulary, 32, dtype=dtype, device="cuda")
    exact = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = loss_written_out(*exact, labels, shares)
    found = output_loss(x, w, labels, shares.float())
    assert found.item() == pytest.approx(expected.item(), rel=TOLERANCES[dtype])
    right = gradients(expected, exact, torch.ones_like(expected))
    for got, want in zip(gradients(found, [x, w], torch.ones_like(found)), right):
        assert relative(got, want) < TOLERANCES[dtype]


@pytest.mark.gpu
def test_a_label_that_is_no_class_makes_the_loss_nan_on_a_gpu() -> None:
    need_a_gpu()
    x, w, labels, shares = loss_inputs(8, 50, 16, dtype=torch.bfloat16, device="cuda")
    labels[2] = 50
    assert output_loss(x, w, labels, torch.ones_like(shares).float()).isnan()


@pytest.mark.gpu
def test_infinite_logits_make_the_loss_not_finite_on_a_gpu() -> None:
    need_a_gpu()
    x, w, labels, shares = loss_inputs(8, 50, 16, dtype=torch.bfloat16, device="cuda")
    with torch.no_grad():
        x[2] = float("inf")
    assert not output_loss(x, w, labels, torch.ones_like(shares).float()).isfinite()
