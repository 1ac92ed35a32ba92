"""The products of packed experts as operators for torch.compile.

On Hopper each is one kernel of quack (kernels/hopper_products.py). For operands that it does not
take, each is the same formula in torch's operations, expert by expert; policy.py asks for packed
rows only where quack is, so that is for tests.

The first product also keeps what GELU's gradient needs, k: see kernels/gelu_product.py.

Shape suffixes: see the head of the package.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.nn.functional as F
from deepspeed.moe.kernels.gelu_product import gelu_slope
from deepspeed.moe.kernels.policy import HAS_OPERATORS, kernels
from deepspeed.moe.kernels.verify import CHECKED_ROWS
from torch import Tensor


def expert_rows(first_row_E1: Tensor, rows: int) -> Tensor:
    """Which rows are whose, bool, [E, R]."""
    row_R = torch.arange(rows, device=first_row_E1.device)
    return (row_R >= first_row_E1[:-1, None]) & (row_R < first_row_E1[1:, None])


def _by_expert(
    x_RK: Tensor, first_row_E1: Tensor, compute: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """``compute(e, x_RK)`` in the rows of expert e, 0 in the empty ones."""
    own_ER = expert_rows(first_row_E1, x_RK.shape[0])
    results = [compute(e, x_RK) for e in range(own_ER.shape[0])]
    zero = torch.zeros((), dtype=x_RK.dtype, device=x_RK.device)
    return torch.stack(
        [torch.where(own_ER[e, :, None], y, zero) for e, y in enumerate(results)]
    ).sum(0)


def _aligned(weight: Tensor) -> Tensor:
    """Contiguous, at an address that the copies of a kernel can take (a multiple of 16 bytes)."""
    weight = weight.contiguous()
    return weight.clone() if weight.data_ptr() % 16 else weight


def _library(weight: Tensor, *others: Tensor) -> Any:
    """quack, if it takes these; else None."""
    hopper = kernels().libraries().hopper
    return hopper if hopper and hopper.supports_operands(weight, *others) else None


def _sample(first_row_E1: Tensor) -> tuple[int, slice]:
    """The expert that has most rows, and the last of them; waits for the device."""
    first = first_row_E1.tolist()
    expert = max(range(len(first) - 1), key=lambda e: first[e + 1] - first[e])
    return expert, slice(max(first[expert], first[expert + 1] - CHECKED_ROWS), first[expert + 1])


def _check(
    name: str, first_row_E1: Tensor, shape: tuple[Any, ...], dtype: torch.dtype,
    found: Callable[[int, slice], tuple[Tensor, ...]],
    formula: Callable[[int, slice], tuple[Tensor, ...]],
) -> None:  # fmt: skip
    """Compare a sample of the first results of a kind with ``formula`` in fp32."""
    kind = (name, *shape, dtype)
    checks = kernels().first_results
    if checks.due(kind):
        expert, rows = _sample(first_row_E1)
        checks.check(
            "quack", kind, dtype, lambda: found(expert, rows), lambda: formula(expert, rows)
        )


def _gelu(x_RM: Tensor, w_MH: Tensor, b_H: Tensor) -> tuple[Tensor, Tensor]:
    h_RH = x_RM @ w_MH + b_H
    return F.gelu(h_RH, approximate="tanh"), gelu_slope(h_RH)


def _up(x_RM: Tensor, first_row_E1: Tensor, w_EMH: Tensor, b_EH: Tensor) -> tuple[Tensor, Tensor]:
    w_EMH, b_EH = _aligned(w_EMH), _aligned(b_EH)
    hopper = _library(w_EMH, x_RM, b_EH)
    if hopper is None:
        h_RH = _by_expert(x_RM, first_row_E1, lambda e, x: x @ w_EMH[e] + b_EH[e])
        return F.gelu(h_RH, approximate="tanh"), gelu_slope(h_RH)
    a_RH, k_RH = (x_RM.new_empty(x_RM.shape[0], b_EH.shape[1]) for _ in range(2))
    hopper.gelu(x_RM, w_EMH, b_EH, a_RH, k_RH, first_row_E1)
    _check(
        "packed gelu", first_row_E1, (*x_RM.shape, *b_EH.shape), x_RM.dtype,
        lambda e, rows: (a_RH[rows], k_RH[rows]),
        lambda e, rows: _gelu(x_RM[rows].float(), w_EMH[e].float(), b_EH[e].float()),
    )  # fmt: skip
    return a_RH, k_RH


def _down(
    dy_RM: Tensor, first_row_E1: Tensor, w_EHM: Tensor, k_RH: Tensor
) -> tuple[Tensor, Tensor]:
    w_EHM = _aligned(w_EHM)
    hopper = _library(w_EHM, dy_RM, k_RH)
    if hopper is None:
        dh_RH = _by_expert(dy_RM, first_row_E1, lambda e, dy: dy @ w_EHM[e].t()) * k_RH
        return dh_RH, expert_rows(first_row_E1, dy_RM.shape[0]).to(dh_RH.dtype) @ dh_RH
    dh_RH = torch.empty_like(k_RH)
    db_EH = hopper.times_slope_packed(dy_RM, w_EHM.mT, k_RH, dh_RH, first_row_E1)
    first = slice(0, CHECKED_ROWS)

    def found(e: int, rows: slice) -> tuple[Tensor, Tensor]:
        return dh_RH[rows], db_EH[e, first]

    def formula(e: int, rows: slice) -> tuple[Tensor, Tensor]:
        whole = slice(int(first_row_E1[e]), int(first_row_E1[e + 1]))
        dh = (dy_RM[rows].float() @ w_EHM[e].float().t()) * k_RH[rows].float()
        return dh, dh_RH[whole, first].sum(0, dtype=torch.float32)

    _check("packed gelu'", first_row_E1, (*dy_RM.shape, *k_RH.shape), dy_RM.dtype, found, formula)
    return dh_RH, db_EH


def _product(
    x_RK: Tensor, first_row_E1: Tensor, w: Tensor, b_EN: Tensor | None, transposed: bool
) -> Tensor:
    w = _aligned(w)
    w_EKN = w.transpose(1, 2) if transposed else w
    hopper = _library(w, x_RK)
    if hopper is None:

        def biased(e: int, x: Tensor) -> Tensor:
            return x @ w_EKN[e] if b_EN is None else x @ w_EKN[e] + b_EN[e]

        return _by_expert(x_RK, first_row_E1, biased)
    y_RN = x_RK.new_empty(x_RK.shape[0], w_EKN.shape[2])
    hopper.product(x_RK, w_EKN, None if b_EN is None else _aligned(b_EN), y_RN, first_row_E1)

    def formula(e: int, rows: slice) -> tuple[Tensor]:
        y = x_RK[rows].float() @ w_EKN[e].float()
        return (y if b_EN is None else y + b_EN[e].float(),)

    shape = (*x_RK.shape, *w.shape, b_EN is not None, transposed)
    _check("packed product", first_row_E1, shape, x_RK.dtype, lambda e, r: (y_RN[r],), formula)
    return y_RN


def _weight_gradient(x_RK: Tensor, first_row_E1: Tensor, dy_RN: Tensor) -> Tensor:
    dw_EKN = x_RK.new_empty(first_row_E1.shape[0] - 1, x_RK.shape[1], dy_RN.shape[1])
    hopper = _library(dw_EKN, x_RK, dy_RN)
    if hopper is None:
        own_ER = expert_rows(first_row_E1, x_RK.shape[0])
        zero = torch.zeros((), dtype=x_RK.dtype, device=x_RK.device)
        return torch.stack([torch.where(own[:, None], x_RK, zero).t() @ dy_RN for own in own_ER])
    hopper.weight_gradient_packed(x_RK, dy_RN, dw_EKN, first_row_E1)
    part = slice(0, CHECKED_ROWS)

    def formula(e: int, rows: slice) -> tuple[Tensor]:
        whole = slice(int(first_row_E1[e]), int(first_row_E1[e + 1]))
        return (x_RK[whole, part].float().t() @ dy_RN[whole, part].float(),)

    _check(
        "packed weight gradient", first_row_E1, (*x_RK.shape, *dy_RN.shape), x_RK.dtype,
        lambda e, rows: (dw_EKN[e, part, part],), formula,
    )  # fmt: skip
    return dw_EKN


if HAS_OPERATORS:
    _up_operator = torch.library.custom_op(
        "dsmoe::packed_up",
        lambda x, first_row, w, b: _up(x, first_row, w, b),
        mutates_args=(),
        schema="(Tensor x, Tensor first_row, Tensor w, Tensor b) -> (Tensor, Tensor)",
    )
    _down_operator = torch.library.custom_op(
        "dsmoe::packed_down",
        lambda dy, first_row, w, k: _down(dy, first_row, w, k),
        mutates_args=(),
        schema="(Tensor dy, Tensor first_row, Tensor w, Tensor k) -> (Tensor, Tensor)",
    )
    _product_operator = torch.library.custom_op(
        "dsmoe::packed_product",
        lambda x, first_row, w, b, transposed: _product(x, first_row, w, b, transposed),
        mutates_args=(),
        schema="(Tensor x, Tensor first_row, Tensor w, Tensor? b, bool transposed) -> Tensor",
    )
    _weight_gradient_operator = torch.library.custom_op(
        "dsmoe::packed_weight_gradient",
        lambda x, first_row, dy: _weight_gradient(x, first_row, dy),
        mutates_args=(),
        schema="(Tensor x, Tensor first_row, Tensor dy) -> Tensor",
    )

    @_up_operator.register_fake
    def _(x: Any, first_row: Any, w: Any, b: Any) -> Any:
        return tuple(x.new_empty(x.shape[0], b.shape[1]) for _ in range(2))

    @_down_operator.register_fake
    def _(dy: Any, first_row: Any, w: Any, k: Any) -> Any:
        return k.new_empty(k.shape), k.new_empty(w.shape[0], w.shape[1])

    @_product_operator.register_fake
    def _(x: Any, first_row: Any, w: Any, b: Any, transposed: bool) -> Any:
        return x.new_empty(x.shape[0], w.shape[1] if transposed else w.shape[2])

    @_weight_gradient_operator.register_fake
    def _(x: Any, first_row: Any, dy: Any) -> Any:
        return x.new_empty(first_row.shape[0] - 1, x.shape[1], dy.shape[1])


def up(x_RM: Tensor, first_row_E1: Tensor, w_EMH: Tensor, b_EH: Tensor) -> tuple[Tensor, Tensor]:
    """gelu(x W + b) [R, H], and k: GELU's derivative at x W + b [R, H].

    Raises:
        RuntimeError: here and below, if quack's first result differs from torch's operations.
    """
    return _up_operator(x_RM, first_row_E1, w_EMH, b_EH)


def down(dy_RM: Tensor, first_row_E1: Tensor, w_EHM: Tensor, k_RH: Tensor) -> tuple[Tensor, Tensor]:
    """(dy W^T) * k [R, H], and its sum over each expert's rows [E, H]."""
    return _down_operator(dy_RM, first_row_E1, w_EHM, k_RH)


def product(
    x_RK: Tensor, first_row_E1: Tensor, w: Tensor, b_EN: Tensor | None, transposed: bool
) -> Tensor:
    """x W + b [R, N]; ``w`` is [E, K, N], or [E, N, K] if ``transposed``."""
    return _product_operator(x_RK, first_row_E1, w, b_EN, transposed)


def weight_gradient(x_RK: Tensor, first_row_E1: Tensor, dy_RN: Tensor) -> Tensor:
    """x^T dy over the rows of each expert, [E, K, N]; 0 for an expert without rows."""
    return _weight_gradient_operator(x_RK, first_row_E1, dy_RN)
