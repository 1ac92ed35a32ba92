"""quack's kernels on packed rows (deepspeed/moe/packed) against the formulas in fp32.

tests/engine/model/test_packed_experts.py shows that the formulas give what padded rows give.
"""

from __future__ import annotations

import pytest
import torch
from deepspeed.moe.kernels import policy
from deepspeed.moe.packed import operators

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or policy.kernels().libraries().hopper is None,
        reason="needs a Hopper GPU and quack-kernels",
    ),
]
WIDTH, HIDDEN, ROWS = 768, 1536, 4096
# bf16 rounds by 2^-9; a sum over rows is rounded once, its terms before that
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 6e-4}
FIRST_ROWS = {
    "ragged": [0, 1, 700, 1500, 3001],
    "an expert without rows": [0, 512, 512, 700, 1025],
    "the first and the last without rows": [0, 0, 300, 900, 900],
    "all slots filled": [0, 1024, 2048, 3072, 4096],
    "all slots empty": [0, 0, 0, 0, 0],
}


def tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    """x, dy, w1, b1, w2, b2."""
    torch.manual_seed(0)
    rows, into, outof = (ROWS, WIDTH), (4, WIDTH, HIDDEN), (4, HIDDEN, WIDTH)
    shapes = (rows, rows, into, (4, HIDDEN), outof, (4, WIDTH))
    scales = (1.0, 0.01, 0.05, 0.1, 0.05, 0.1)
    return [
        (torch.randn(shape, device="cuda") * scale).to(dtype)
        for shape, scale in zip(shapes, scales)
    ]


def compute(first: torch.Tensor, given: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    x, dy, w1, b1, w2, b2 = given
    a, k = operators.up(x, first, w1, b1)
    y = operators.product(a, first, w2, b2, False)
    dh, db1 = operators.down(dy, first, w2, k)
    return {
        "a": a, "k": k, "y": y, "dh": dh, "db1": db1,
        "dx": operators.product(dh, first, w1, None, True),
        "dw1": operators.weight_gradient(x, first, dh),
        "dw2": operators.weight_gradient(a, first, dy),
    }  # fmt: skip


def formulas(
    first: torch.Tensor, given: list[torch.Tensor], found: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """In fp32, each from the kernels' own results before it."""
    x, dy, w1, b1, w2, b2 = (t.float() for t in given)
    a, k, dh = (found[name].float() for name in ("a", "k", "dh"))
    with policy.using(policy.KernelPolicy(policy.Libraries())):
        up = operators.up(x, first, w1, b1)
        down = operators.down(dy, first, w2, k)
        own = operators.expert_rows(first, ROWS).float()
        return {
            "a": up[0], "k": up[1], "y": operators.product(a, first, w2, b2, False),
            "dh": down[0], "db1": own @ torch.where(own.any(0)[:, None], dh, 0.0),
            "dx": operators.product(dh, first, w1, None, True),
            "dw1": operators.weight_gradient(x, first, torch.where(own.any(0)[:, None], dh, 0.0)),
            "dw2": operators.weight_gradient(torch.where(own.any(0)[:, None], a, 0.0), first, dy),
        }  # fmt: skip


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("case", list(FIRST_ROWS))
def test_packed_products_are_their_formulas(case: str, dtype: torch.dtype) -> None:
    first = torch.tensor(FIRST_ROWS[case], dtype=torch.int32, device="cuda")
    given = tensors(dtype)
    found = compute(first, given)
    for name, right in formulas(first, given, found).items():
        result = found[name].float()
        if result.shape[0] == ROWS:  # empty rows have no value
            result, right = result[: FIRST_ROWS[case][-1]], right[: FIRST_ROWS[case][-1]]
        error, size = (result - right).norm(), right.norm()
        assert bool(error <= TOLERANCE[dtype] * size), (name, float(error), float(size))


def test_a_graph_takes_other_first_rows_when_it_is_replayed() -> None:
    given = tensors(torch.bfloat16)
    first = torch.tensor(FIRST_ROWS["ragged"], dtype=torch.int32, device="cuda")
    compute(first, given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = compute(first, given)
    for case in ("an expert without rows", "all slots filled", "ragged"):
        first.copy_(torch.tensor(FIRST_ROWS[case], dtype=torch.int32))
        graph.replay()
        expected = compute(first, given)
        for name, result in captured.items():
            rows = FIRST_ROWS[case][-1] if result.shape[0] == ROWS else None
            assert torch.equal(result[:rows], expected[name][:rows]), (case, name)
