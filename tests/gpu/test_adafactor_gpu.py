"""The three passes of fused_update.py against the same step in torch's operations; needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deepspeed.ops.adafactor import Adafactor, update
from deepspeed.runtime.zero import flat_group
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = ((300, 70), (33, 1025), (2, 2), (5, 96, 130), (7,))
TOLERANCE = 1e-5  # sums of squares in another order, in fp32


def steps(options: dict[str, Any], count: int = 4) -> tuple[list[Tensor], int]:
    """Parameters after some steps from the same start, and what the last step launched."""
    torch.manual_seed(0)
    params = [torch.randn(s, device="cuda").requires_grad_() for s in SHAPES]
    optimizer = Adafactor(params, **options)
    for _ in range(count):
        for param in params:
            param.grad = torch.randn_like(param) * param.numel() ** 0.5
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
            optimizer.step()
            torch.cuda.synchronize()
    return params, sum(str(event.device_type).endswith("CUDA") for event in found.events())


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"scale_parameter": False, "lr": 1e-2, "relative_step": False}],
)
def test_the_kernels_equal_the_operations(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, launches = steps(options)
    again, _ = steps(options)
    monkeypatch.setattr(update, "has_triton", lambda: False)
    expected, launches_of_operations = steps(options)
    assert launches < launches_of_operations  # so the kernels were used
    for got, repeated, want in zip(found, again, expected):
        assert torch.equal(got, repeated)
        torch.testing.assert_close(got, want, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_sum_of_two_dtypes() -> None:
    """Of gradients that are worth a kernel, and of small ones."""
    torch.manual_seed(1)
    for numel in (2**20 + 77, 50):
        place = torch.randn(numel, device="cuda")
        param = torch.zeros(numel, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        param.grad = torch.randn(numel, device="cuda").bfloat16()
        expected = place + 0.25 * param.grad.float()
        flat_group.put([place], [param], 0.25, add=True)
        torch.testing.assert_close(place, expected, rtol=1e-6, atol=1e-6)
