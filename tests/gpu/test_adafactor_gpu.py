"""The three passes of fused_update.py against the same step in torch's operations; needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deepspeed.ops.adafactor import Adafactor, update
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = ((300, 70), (33, 1025), (2, 2), (5, 96, 130), (7,))
TOLERANCE = 1e-5  # sums of squares in another order, in fp32


def steps(options: dict[str, Any], count: int = 4) -> tuple[list[Tensor], int]:
    """Parameters after some steps from the same start, and how often the kernels were used."""
    torch.manual_seed(0)
    params = [torch.randn(s, device="cuda").requires_grad_() for s in SHAPES]
    optimizer = Adafactor(params, **options)
    used = 0
    real = update._update_fused

    def counted(*arguments: object) -> None:
        nonlocal used
        used += 1
        real(*arguments)

    update._update_fused = counted
    try:
        for _ in range(count):
            for param in params:
                param.grad = torch.randn_like(param) * param.numel() ** 0.5
            optimizer.step()
    finally:
        update._update_fused = real
    return params, used


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"scale_parameter": False, "lr": 1e-2, "relative_step": False}],
)
def test_the_kernels_equal_the_operations(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, used = steps(options)
    again, _ = steps(options)
    assert used == 4 * 4  # every shape but the vector
    monkeypatch.setattr(update, "has_triton", lambda: False)
    expected, unused = steps(options)
    assert unused == 0
    for got, repeated, want in zip(found, again, expected):
        assert torch.equal(got, repeated)
        torch.testing.assert_close(got, want, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_sum_of_two_dtypes() -> None:
    from deepspeed.runtime.zero import flat_group

    torch.manual_seed(1)
    for numel in (flat_group._LARGE + 77, 50):
        place = torch.randn(numel, device="cuda")
        part = torch.randn(numel, device="cuda").bfloat16()
        expected = place + 0.25 * part.float()
        flat_group._add(place, part, 0.25)
        torch.testing.assert_close(place, expected, rtol=1e-6, atol=1e-6)
