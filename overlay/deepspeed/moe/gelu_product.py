"""Products with GELU, and with GELU's derivative, in their epilogue: operators for torch.compile.

On a GPU, in 16 bit, they are one kernel of cuBLASLt each (cublaslt.py); elsewhere, and for shapes
that the library has no kernel for, they are the same formula in torch's operations.

Shape suffixes: E products in a batch, R rows, M model width, H hidden width.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cublaslt

HAS_OPERATORS = hasattr(getattr(torch, "library", None), "custom_op")  # torch 2.4
# Relative, of the library's first result; bf16 rounds by 2^-9.
_TOLERANCE = 2e-2
_CHECKED_ROWS = 256
# Kind -> checks still to do; each waits for the device, so there are not many.
_CHECKS = 8
_LEFT: dict[cublaslt.Product, int] = {}


def serves(x: Tensor) -> bool:
    """Whether ``x`` is what operators of our own are for: 16 bit, on a GPU, being compiled."""
    return (
        HAS_OPERATORS
        and x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
        and torch.compiler.is_compiling()
    )


def matrix(weight: Tensor, transposed: bool) -> Tensor:
    """[E, K, N] of a weight that is stored so, or ``transposed`` as [E, N, K]."""
    return weight.transpose(1, 2) if transposed else weight


def _up_formula(x_ERM: Tensor, w: Tensor, b_EH: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    h_ERH = torch.bmm(x_ERM, matrix(w, transposed)) + b_EH[:, None]
    return F.gelu(h_ERH, approximate="tanh"), h_ERH


def _down_formula(dy_ERM: Tensor, w: Tensor, h_ERH: Tensor, transposed: bool) -> Tensor:
    da_ERH = torch.bmm(dy_ERM, matrix(w, transposed).transpose(1, 2))
    return torch.ops.aten.gelu_backward(da_ERH, h_ERH, approximate="tanh")


def _up(x_ERM: Tensor, w: Tensor, b_EH: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    x_ERM, w, b_EH = x_ERM.contiguous(), w.contiguous(), b_EH.contiguous()
    if not _by_library(x_ERM, w, b_EH):
        return _up_formula(x_ERM, w, b_EH, transposed)
    kind = _kind(cublaslt.GELU_AUX_BIAS, x_ERM, b_EH.shape[1], transposed)
    a_ERH, h_ERH = (x_ERM.new_empty(*x_ERM.shape[:2], b_EH.shape[1]) for _ in range(2))
    if not cublaslt.product(kind, x_ERM, w, a_ERH, h_ERH, b_EH):
        _say_none(kind)
        return _up_formula(x_ERM, w, b_EH, transposed)
    _check(kind, (a_ERH, h_ERH), lambda: _up_formula(_few(x_ERM), _one(w), _one(b_EH), transposed))
    return a_ERH, h_ERH


def _down(dy_ERM: Tensor, w: Tensor, h_ERH: Tensor, transposed: bool) -> Tensor:
    dy_ERM, w, h_ERH = dy_ERM.contiguous(), w.contiguous(), h_ERH.contiguous()
    if not _by_library(dy_ERM, w, h_ERH):
        return _down_formula(dy_ERM, w, h_ERH, transposed)
    # the weight of this product is the other one's, transposed
    kind = _kind(cublaslt.DGELU, dy_ERM, h_ERH.shape[2], not transposed)
    dh_ERH = torch.empty_like(h_ERH)
    if not cublaslt.product(kind, dy_ERM, w, dh_ERH, h_ERH, None):
        _say_none(kind)
        return _down_formula(dy_ERM, w, h_ERH, transposed)
    _check(
        kind, (dh_ERH,), lambda: (_down_formula(_few(dy_ERM), _one(w), _few(h_ERH), transposed),)
    )
    return dh_ERH


def _by_library(x: Tensor, *others: Tensor) -> bool:
    """Whether the library can be asked: it reads 16 bytes at a time, from such addresses."""
    return (
        x.is_cuda
        and x.dtype in (torch.float16, torch.bfloat16)
        and not cublaslt.problem()
        and all(t.dtype == x.dtype and t.data_ptr() % 16 == 0 for t in (x, *others))
    )


def _kind(epilogue: int, x: Tensor, outer: int, transposed: bool) -> cublaslt.Product:
    return cublaslt.Product(epilogue, *x.shape, outer, transposed, x.dtype)


def _one(weight: Tensor) -> Tensor:
    """Of the last product, for the check: it shows wrong distances between products too."""
    return weight[-1:].float()


def _few(rows: Tensor) -> Tensor:
    return rows[-1:, :_CHECKED_ROWS].float()


def _say_none(kind: cublaslt.Product) -> None:
    warnings.warn(f"cuBLASLt has no kernel for {kind}; GELU is a kernel of its own", stacklevel=3)


def _check(
    kind: cublaslt.Product,
    results: tuple[Tensor, ...],
    formula: Callable[[], tuple[Tensor, ...]],
) -> None:
    """Compare the results of a kind with the formula in fp32, in its first calls until one counts.

    Raises:
        RuntimeError: where they are further apart than rounding explains. What the formula has no
            finite value for, or nothing but zeros, says nothing.
    """
    left = _LEFT.setdefault(kind, _CHECKS)
    if not left or torch.cuda.is_current_stream_capturing():
        return
    _LEFT[kind] = left - 1
    for result, right in zip(results, formula()):
        found = _few(result)
        error, size = (found - right).norm().item(), right.norm().item()
        # gradients in fp16 may lie below its smallest number, and are rounded to it or to 0
        info = torch.finfo(kind.dtype)
        smallest = info.tiny * info.eps * math.sqrt(right.numel())
        if math.isfinite(size) and not error <= _TOLERANCE * size + smallest:
            raise RuntimeError(
                f"cuBLASLt's result for {kind} is {error:.3g} away from torch's of norm {size:.3g};"
                " train without torch.compile, and please report it"
            )
        if not math.isfinite(size) or size <= smallest:
            return
    _LEFT[kind] = 0


if HAS_OPERATORS:
    _up_operator = torch.library.custom_op(
        "dsmoe::product_gelu",
        _up,
        mutates_args=(),
        schema="(Tensor x, Tensor w, Tensor b, bool transposed) -> (Tensor, Tensor)",
    )
    _down_operator = torch.library.custom_op(
        "dsmoe::product_gelu_derivative",
        _down,
        mutates_args=(),
        schema="(Tensor dy, Tensor w, Tensor h, bool transposed) -> Tensor",
    )

    @_up_operator.register_fake
    def _(x: Any, w: Any, b: Any, transposed: bool) -> Any:
        return tuple(x.new_empty(*x.shape[:2], b.shape[1]) for _ in range(2))

    @_down_operator.register_fake
    def _(dy: Any, w: Any, h: Any, transposed: bool) -> Any:
        return h.new_empty(h.shape)


def product_gelu(x_ERM: Tensor, w: Tensor, b_EH: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
    """gelu(x W + b) [E, R, H], and what GELU was given.

    Args:
        x_ERM: [E, R, M].
        w: [E, M, H], or [E, H, M] if ``transposed`` (``nn.Linear``'s layout).
        b_EH: [E, H].

    Raises:
        RuntimeError: if the library's first result is not that of torch's operations.
    """
    return _up_operator(x_ERM, w, b_EH, transposed)


def product_gelu_derivative(dy_ERM: Tensor, w: Tensor, h_ERH: Tensor, transposed: bool) -> Tensor:
    """(dy W^T) * gelu'(h), [E, R, H]: the gradient of ``h`` from that of gelu(h) W.

    Args:
        dy_ERM: [E, R, M].
        w: [E, H, M], or [E, M, H] if ``transposed``.
        h_ERH: [E, R, H].

    Raises:
        RuntimeError: as :func:`product_gelu`.
    """
    return _down_operator(dy_ERM, w, h_ERH, transposed)
