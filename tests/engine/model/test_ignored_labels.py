"""Labels of -100 are left out of the loss: the mean is torch's, over the other positions.

In the eager pass, through torch.compile, and in the fused output layer and loss, whose kernel
(cross_entropy.py) has the same formula on the CPU.
"""

from __future__ import annotations

from typing import Iterator

import pytest
import torch
import torch.nn.functional as F
from deepspeed.moe.kernels import policy
from deepspeed.moe.kernels.gelu_product import HAS_OPERATORS
from deepspeed.moe.lm import MoELM, MoELMConfig
from torch import Tensor

CONFIG = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_experts": 1,
    "num_heads": 2,
    "vocab_size": 24,
    "sequence_length": 12,
    "init_std": 0.2,
}


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randint(0, 24, (2, 3, 12), generator=generator).unbind(0)
    y[:, 7:] = -100
    y[1, :3] = -100
    return x, y


class FusedLoss(policy.KernelPolicy):
    """The loss is the fused operator, which a CPU computes by its formula."""

    def fuses_loss(self, x: Tensor) -> bool:
        return True


@pytest.fixture(params=["eager", "compiled", "fused"])
def model(request: pytest.FixtureRequest) -> Iterator[MoELM]:
    way = request.param
    if way == "compiled" and not hasattr(torch, "compiler"):
        pytest.skip("this torch does not compile")
    if way == "fused" and not HAS_OPERATORS:
        pytest.skip("this torch has no custom operators")
    kernels = FusedLoss(policy.Libraries()) if way == "fused" else policy.kernels()
    with policy.using(kernels):
        made = MoELM(MoELMConfig(**CONFIG), seed=3)
        if way == "compiled":
            torch.compiler.reset()
            made.compile_training(backend="aot_eager")
        yield made


def test_the_loss_is_torchs_mean(model: MoELM) -> None:
    x, y = inputs()
    loss = model(x, y)
    expected = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(loss, list(model.parameters()))
    want = torch.autograd.grad(expected, list(model.parameters()))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_mask_and_ignored_labels_together(model: MoELM) -> None:
    """Weights of ignored positions count neither in the sum nor in the divisor."""
    x, y = inputs()
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(6))
    losses = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none")
    weights = (mask * (y != -100)).flatten()
    expected = (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(model(x, y, mask), expected, rtol=1e-5, atol=1e-6)


def test_nothing_but_ignored_labels(model: MoELM) -> None:
    """The loss and every gradient are 0, not NaN."""
    x, y = inputs()
    loss = model(x, torch.full_like(y, -100))
    assert loss.item() == 0.0
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        assert not gradient.any()
