"""Products with GELU, and with GELU's derivative, in their epilogue: operators for torch.compile.

On a GPU, in 16 bit, each is one kernel of a library: quack's on Hopper (hopper_products.py), else
cuBLASLt's (cublaslt.py). Elsewhere, and for shapes without such a kernel, each falls back to the
same formula in torch's operations.

The first product also keeps what the derivative needs, called k: GELU's input, as cuBLASLt's
epilogues have it, or GELU's derivative itself where quack is used, which then multiplies by it.
``kernels().keeps_slopes()`` says which, for all products of a process.

Shape suffixes: E products in a batch, R rows, M model width, H hidden width.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cublaslt
from .policy import HAS_OPERATORS, kernels
from .verify import CHECKED_ROWS


def matrix(weight: Tensor, transposed: bool) -> Tensor:
    """The weight as [E, K, N]; it is stored so, or ``transposed`` as [E, N, K]."""
    return weight.transpose(1, 2) if transposed else weight


def gelu_slope(h: Tensor) -> Tensor:
    """GELU's derivative at ``h``, in its tanh form."""
    return torch.ops.aten.gelu_backward(torch.ones_like(h), h, approximate="tanh")


def _up_formula(x_ERM: Tensor, w: Tensor, b_EH: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    h_ERH = torch.bmm(x_ERM, matrix(w, transposed)) + b_EH[:, None]
    k_ERH = gelu_slope(h_ERH) if kernels().keeps_slopes() else h_ERH
    return F.gelu(h_ERH, approximate="tanh"), k_ERH


def _down_formula(
    dy_ERM: Tensor, w: Tensor, k_ERH: Tensor, transposed: bool
) -> tuple[Tensor, Tensor]:
    da_ERH = torch.bmm(dy_ERM, matrix(w, transposed).transpose(1, 2))
    if kernels().keeps_slopes():
        dh_ERH = da_ERH * k_ERH
    else:
        dh_ERH = torch.ops.aten.gelu_backward(da_ERH, k_ERH, approximate="tanh")
    return dh_ERH, dh_ERH.sum(1)


def up(
    x_ERM: Tensor,
    w: Tensor,
    b_EH: Tensor,
    transposed: bool,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`product_gelu` outside of a graph, into ``out`` if given; rows may be a slice."""
    if out is None:
        shape = (*x_ERM.shape[:2], b_EH.shape[1])
        out = x_ERM.new_empty(shape), x_ERM.new_empty(shape)
    hopper = kernels().libraries().hopper
    if hopper and hopper.supports_operands(w, x_ERM, b_EH, *out):
        hopper.gelu(x_ERM, matrix(w, transposed), b_EH, *out)
        kind: Any = ("gelu", *x_ERM.shape, b_EH.shape[1], transposed, x_ERM.dtype)
    else:
        kind = _up_without_hopper(x_ERM.contiguous(), w.contiguous(), b_EH, transposed, out)
    if kind is not None:
        kernels().first_results.check(
            _library(kind),
            kind,
            x_ERM.dtype,
            lambda: (_few(out[0]), _few(out[1])),
            lambda: _up_formula(_few(x_ERM).float(), _one(w), _one(b_EH), transposed),
        )
    return out


def _up_without_hopper(
    x_ERM: Tensor, w: Tensor, b_EH: Tensor, transposed: bool, out: tuple[Tensor, Tensor]
) -> cublaslt.Product | None:
    """Returns the kind of cuBLASLt's product; None where the formula computed it."""
    b_EH = b_EH.contiguous()
    library = _cublaslt()
    if library and library.supports_operands(x_ERM, w, b_EH, *out):
        kind = _kind(cublaslt.GELU_AUX_BIAS, x_ERM, b_EH.shape[1], transposed)
        if library.product(kind, x_ERM, w, *out, b_EH):
            return kind
        _note_missing_kernel(kind)
    for target, result in zip(out, _up_formula(x_ERM, w, b_EH, transposed)):
        target.copy_(result)
    return None


def down(
    dy_ERM: Tensor, w: Tensor, k_ERH: Tensor, transposed: bool, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`product_gelu_derivative` outside of a graph, the first result into ``out`` if given.

    Rows may be a slice.
    """
    dh_ERH = (
        torch.empty(k_ERH.shape, dtype=k_ERH.dtype, device=k_ERH.device) if out is None else out
    )
    hopper = kernels().libraries().hopper
    if hopper and hopper.supports_operands(w, dy_ERM, k_ERH, dh_ERH):
        back = matrix(w, transposed).transpose(1, 2)
        db_EH = hopper.times_slope(dy_ERM, back, k_ERH, dh_ERH)
        kind: Any = ("gelu'", *dy_ERM.shape, k_ERH.shape[2], transposed, dy_ERM.dtype)
    else:
        kind, db_EH = _down_without_hopper(
            dy_ERM.contiguous(), w.contiguous(), k_ERH.contiguous(), transposed, dh_ERH
        )
    if kind is not None:
        kernels().first_results.check(
            _library(kind),
            kind,
            dy_ERM.dtype,
            # the sum is over all rows, so it is compared, as a mean, with the result's own
            lambda: (_few(dh_ERH), db_EH[-1].float() / dh_ERH.shape[1]),
            lambda: (
                _down_formula(_few(dy_ERM).float(), _one(w), _few(k_ERH).float(), transposed)[0],
                # rounded as a sum, so that what fp16 cannot hold is infinite in both
                dh_ERH[-1].sum(0, dtype=torch.float32).to(dh_ERH.dtype).float() / dh_ERH.shape[1],
            ),
        )
    return dh_ERH, db_EH


def _down_without_hopper(
    dy_ERM: Tensor, w: Tensor, k_ERH: Tensor, transposed: bool, dh_ERH: Tensor
) -> tuple[cublaslt.Product | None, Tensor]:
    """As :func:`_up_without_hopper`, and the sum over rows."""
    library = _cublaslt()
    if library and library.supports_operands(dy_ERM, w, k_ERH, dh_ERH):
        # the weight of this product is the other one's, transposed
        kind = _kind(cublaslt.DGELU, dy_ERM, k_ERH.shape[2], not transposed)
        if library.product(kind, dy_ERM, w, dh_ERH, k_ERH, None):
            return kind, dh_ERH.sum(1)
        _note_missing_kernel(kind)
    result, db_EH = _down_formula(dy_ERM, w, k_ERH, transposed)
    dh_ERH.copy_(result)
    return None, db_EH


def _cublaslt() -> ModuleType | None:
    """cuBLASLt, whose epilogues keep GELU's input; None in a process that keeps slopes."""
    return None if kernels().keeps_slopes() else kernels().libraries().cublaslt


def _kind(epilogue: int, x: Tensor, outer: int, transposed: bool) -> cublaslt.Product:
    return cublaslt.Product(epilogue, *x.shape, outer, transposed, x.dtype)


def _library(kind: Any) -> str:
    return "cuBLASLt" if isinstance(kind, cublaslt.Product) else "quack"


def _one(weight: Tensor) -> Tensor:
    """The last weight, for the check: there a wrong stride between products shows too."""
    return weight[-1:].float()


def _few(rows: Tensor) -> Tensor:
    return rows[-1:, :CHECKED_ROWS]


def _note_missing_kernel(kind: cublaslt.Product) -> None:
    kernels().fall_back(f"cuBLASLt has no kernel for {kind}; GELU runs as a separate kernel")


if HAS_OPERATORS:
    _up_operator = torch.library.custom_op(
        "dsmoe::product_gelu",
        lambda x, w, b, transposed: up(x, w, b, transposed),
        mutates_args=(),
        schema="(Tensor x, Tensor w, Tensor b, bool transposed) -> (Tensor, Tensor)",
    )
    _down_operator = torch.library.custom_op(
        "dsmoe::product_gelu_derivative",
        lambda dy, w, h, transposed: down(dy, w, h, transposed),
        mutates_args=(),
        schema="(Tensor dy, Tensor w, Tensor h, bool transposed) -> (Tensor, Tensor)",
    )

    @_up_operator.register_fake
    def _(x: Any, w: Any, b: Any, transposed: bool) -> Any:
        return tuple(x.new_empty(*x.shape[:2], b.shape[1]) for _ in range(2))

    @_down_operator.register_fake
    def _(dy: Any, w: Any, h: Any, transposed: bool) -> Any:
        return h.new_empty(h.shape), h.new_empty(h.shape[0], h.shape[2])


def product_gelu(x_ERM: Tensor, w: Tensor, b_EH: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    """gelu(x W + b) [E, R, H], and k [E, R, H] (see the head of the file).

    Args:
        x_ERM: [E, R, M].
        w: [E, M, H], or [E, H, M] if ``transposed`` (``nn.Linear``'s layout).
        b_EH: [E, H].

    Raises:
        RuntimeError: if the library's first result differs from torch's operations.
    """
    return _up_operator(x_ERM, w, b_EH, transposed)


def product_gelu_derivative(
    dy_ERM: Tensor, w: Tensor, k_ERH: Tensor, transposed: bool
) -> tuple[Tensor, Tensor]:
    """(dy W^T) * gelu'(h) [E, R, H], and its sum over R [E, H].

    These are the gradients of GELU's input h and of its bias, from that of gelu(h) W.

    Args:
        dy_ERM: [E, R, M].
        w: [E, H, M], or [E, M, H] if ``transposed``.
        k_ERH: [E, R, H], of :func:`product_gelu`.

    Raises:
        RuntimeError: as :func:`product_gelu`.
    """
    return _down_operator(dy_ERM, w, k_ERH, transposed)
