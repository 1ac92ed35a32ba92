"""The FP8 products as operators for torch.compile, and their formulas in torch operations.

On Hopper with quack-kernels each is one kernel (hopper.py). On another GPU the product is
cuBLASLt's (``torch._scaled_mm``) and the rest is torch's. On a CPU the product is one of the values
in fp32: right, and slow. Long sums, over the rows (the weights' gradients), are always cuBLASLt's,
promoted to fp32 on the way: the FP8 accumulator of Hopper's tensor cores drops bits of long sums.

All factors are fp32 scalars [].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.moe.kernels.gelu_product import gelu_slope
from deepspeed.moe.kernels.policy import HAS_OPERATORS, kernels
from deepspeed.moe.kernels.verify import CHECKED_ROWS
from torch import Tensor

from .quantise import FORMAT, LARGEST, MULTIPLE

_ROUNDED = torch.bfloat16


def _to_fp8(x: Tensor) -> Tensor:
    """Rounded, and limited as the kernels do it; NaN stays NaN."""
    return x.clamp(-LARGEST, LARGEST).to(FORMAT)


def _exact(a_EAK: Tensor, b_EBK: Tensor, factor: Tensor) -> Tensor:
    """The product of the FP8 values in fp32, [E, A, B]."""
    return torch.bmm(a_EAK.float(), b_EBK.float().transpose(1, 2)) * factor


def _scaled(a_EAK: Tensor, b_EBK: Tensor, factor: Tensor, fast: bool) -> Tensor:
    """By cuBLASLt where it can, [E, A, B] in bf16, or fp32 on a CPU."""
    sizes = (*a_EAK.shape[1:], b_EBK.shape[1])
    if not a_EAK.is_cuda or any(size % MULTIPLE for size in sizes):  # cuBLASLt has no kernel
        product = _exact(a_EAK, b_EBK, factor)
        return product.to(_ROUNDED) if a_EAK.is_cuda else product
    one = torch.ones_like(factor)
    y_EAB = a_EAK.new_empty(a_EAK.shape[0], sizes[0], sizes[2], dtype=_ROUNDED)
    for a_AK, b_BK, y_AB in zip(a_EAK, b_EBK, y_EAB):
        torch._scaled_mm(
            a_AK, b_BK.t(), factor, one, out_dtype=_ROUNDED, use_fast_accum=fast, out=y_AB
        )
    return y_EAB


def _up_formula(
    x_ERM: Tensor, w_EHM: Tensor, b_EH: Tensor, factor: Tensor, scale: Tensor, exact: bool = False
) -> tuple[Tensor, ...]:
    product = _exact(x_ERM, w_EHM, factor) if exact else _scaled(x_ERM, w_EHM, factor, fast=True)
    h_ERH = product.float() + b_EH.float()[:, None]
    a_ERH = _to_fp8(F.gelu(h_ERH, approximate="tanh") * scale)
    return a_ERH, a_ERH.transpose(1, 2).contiguous(), gelu_slope(h_ERH).to(b_EH.dtype)


def _up(
    x_ERM: Tensor, w_EHM: Tensor, b_EH: Tensor, factor: Tensor, scale: Tensor
) -> tuple[Tensor, ...]:
    hopper = _hopper(x_ERM, w_EHM)
    if hopper is None:
        return _up_formula(x_ERM, w_EHM, b_EH, factor, scale)
    out = hopper.up(x_ERM, w_EHM, b_EH, factor, scale)
    few, one = x_ERM[-1:, :CHECKED_ROWS], (w_EHM[-1:], b_EH[-1:])
    _check(
        ("fp8 up", *x_ERM.shape, w_EHM.shape[1]),
        lambda: (*_few(out[:2]), out[2][-1:, :CHECKED_ROWS]),
        lambda: _up_formula(few, *one, factor, scale, exact=True),
    )
    return out


def _down_formula(
    dy_ERM: Tensor, w_EHM: Tensor, slope_ERH: Tensor, factor: Tensor, scale: Tensor,
    exact: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    product = _exact(dy_ERM, w_EHM, factor) if exact else _scaled(dy_ERM, w_EHM, factor, fast=True)
    dh_ERH = product.float() * slope_ERH.float()
    small = _to_fp8(dh_ERH * scale)
    return small, small.transpose(1, 2).contiguous(), dh_ERH.sum(1).to(slope_ERH.dtype)


def _down(
    dy_ERM: Tensor, w_EHM: Tensor, slope_ERH: Tensor, factor: Tensor, scale: Tensor
) -> tuple[Tensor, ...]:
    hopper = _hopper(dy_ERM, w_EHM)
    if hopper is None:
        return _down_formula(dy_ERM, w_EHM, slope_ERH, factor, scale)
    out = hopper.down(dy_ERM, w_EHM, slope_ERH, factor, scale)
    few, slope = dy_ERM[-1:, :CHECKED_ROWS], slope_ERH[-1:, :CHECKED_ROWS]
    _check(
        ("fp8 down", *dy_ERM.shape, w_EHM.shape[1]),
        lambda: _few(out[:2]),
        lambda: _down_formula(few, w_EHM[-1:], slope, factor, scale, exact=True)[:2],
    )
    return out


def _product(
    a_EAK: Tensor, b_EBK: Tensor, factor: Tensor, long: bool, dtype: torch.dtype
) -> Tensor:
    hopper = None if long else _hopper(a_EAK, b_EBK)
    if hopper is None:
        return _scaled(a_EAK, b_EBK, factor, fast=not long).to(dtype)
    y_EAB = hopper.product(a_EAK, b_EBK, factor)
    few = a_EAK[-1:, :CHECKED_ROWS]
    _check(
        ("fp8 product", *a_EAK.shape, b_EBK.shape[1]),
        lambda: (y_EAB[-1:, :CHECKED_ROWS],),
        lambda: (_exact(few, b_EBK[-1:], factor),),
    )
    return y_EAB


def _few(both: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """A part of a result in rows and of the same transposed."""
    return both[0][-1:, :CHECKED_ROWS], both[1][-1:, :, :CHECKED_ROWS]


def _hopper(a_EAK: Tensor, b_EBK: Tensor) -> Any:
    library = kernels().libraries().fp8
    if library is None or library.supports_operands(a_EAK, b_EBK):
        return library
    shapes = f"{list(a_EAK.shape)} and {list(b_EBK.shape)}"
    kernels().fall_back(f"quack has no FP8 kernel for operands {shapes}; torch multiplies them")
    return None


def _check(kind: Any, found: Any, formula: Any) -> None:
    kernels().first_results.check("quack", kind, None, found, formula)


if HAS_OPERATORS:
    _up_operator = torch.library.custom_op(
        "dsmoe::fp8_up",
        lambda x, w, b, factor, scale: _up(x, w, b, factor, scale),
        mutates_args=(),
        schema="(Tensor x, Tensor w, Tensor b, Tensor factor, Tensor scale)"
        " -> (Tensor, Tensor, Tensor)",
    )
    _down_operator = torch.library.custom_op(
        "dsmoe::fp8_down",
        lambda dy, w, slope, factor, scale: _down(dy, w, slope, factor, scale),
        mutates_args=(),
        schema="(Tensor dy, Tensor w, Tensor slope, Tensor factor, Tensor scale)"
        " -> (Tensor, Tensor, Tensor)",
    )
    _product_operator = torch.library.custom_op(
        "dsmoe::fp8_product",
        lambda a, b, factor, long, dtype: _product(a, b, factor, long, dtype),
        mutates_args=(),
        schema="(Tensor a, Tensor b, Tensor factor, bool long, ScalarType dtype) -> Tensor",
    )

    @_up_operator.register_fake
    def _(x: Any, w: Any, b: Any, factor: Any, scale: Any) -> Any:
        experts, rows, hidden = x.shape[0], x.shape[1], w.shape[1]
        shape = (experts, rows, hidden)
        turned = x.new_empty(experts, hidden, rows)
        return x.new_empty(shape), turned, b.new_empty(shape)

    @_down_operator.register_fake
    def _(dy: Any, w: Any, slope: Any, factor: Any, scale: Any) -> Any:
        experts, rows, hidden = slope.shape
        turned = dy.new_empty(experts, hidden, rows)
        return dy.new_empty(slope.shape), turned, slope.new_empty(experts, hidden)

    @_product_operator.register_fake
    def _(a: Any, b: Any, factor: Any, long: bool, dtype: Any) -> Any:
        return a.new_empty(a.shape[0], a.shape[1], b.shape[1], dtype=dtype)

else:  # torch 2.1 to 2.3: no graphs
    _up_operator, _down_operator, _product_operator = _up, _down, _product


def up(
    x_ERM: Tensor, w_EHM: Tensor, b_EH: Tensor, factor: Tensor, scale: Tensor
) -> tuple[Tensor, ...]:
    """gelu(x W + b) times ``scale`` in FP8, [E, R, H] and [E, H, R]; gelu' [E, R, H] in b's type.

    Args:
        x_ERM, w_EHM: FP8; their product times ``factor`` is x W.
        b_EH: bf16, or fp32 on a CPU.
    """
    return _up_operator(x_ERM, w_EHM, b_EH, factor, scale)


def down(
    dy_ERM: Tensor, w_EHM: Tensor, slope_ERH: Tensor, factor: Tensor, scale: Tensor
) -> tuple[Tensor, ...]:
    """dh = (dy W) * slope times ``scale`` in FP8, [E, R, H] and [E, H, R]; sum over R of dh [E, H].

    Args:
        dy_ERM, w_EHM: FP8; their product times ``factor`` is dy W.
        slope_ERH: of :func:`up`.
    """
    return _down_operator(dy_ERM, w_EHM, slope_ERH, factor, scale)


def product(
    a_EAK: Tensor, b_EBK: Tensor, factor: Tensor, dtype: torch.dtype, long: bool = False
) -> Tensor:
    """a b^T times ``factor``, [E, A, B] in ``dtype``; a ``long`` sum is promoted to fp32."""
    return _product_operator(a_EAK, b_EBK, factor, long, dtype)
