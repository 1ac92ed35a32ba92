"""Products on a Hopper GPU with an epilogue of our own, by quack-kernels (Tri Dao and others).

An epilogue is a function of one element, which quack compiles into its persistent kernel: while one
half of a multiprocessor's warps computes it, the other half multiplies (figures:
docs/lab/performance.md).

A kernel compiles once (some seconds) and quack keeps it on disk; it does not depend on the shapes.

Importing this module imports quack, which takes seconds: only policy.py does so.

Shape suffixes: E products in a batch, R rows, K width of the sum, N width of the result.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import torch
from quack.activation import dgelu_tanh_approx
from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.ops import RowVecLoad, RowVecReduce
from quack.gemm import gemm
from torch import Tensor

# deprecation warnings of the package and of cutlass, while a kernel compiles
warnings.filterwarnings("ignore", module=r"(quack|cutlass)\b")
VERSION = f"quack-kernels {version('quack-kernels')}"
# The fastest of ten tiles and three clusters for the products of a 380M model, on an H100;
# cluster_M and cluster_N are the multiprocessors that share an operand. "pingpong": one half of the
# warps multiplies while the other is in the epilogue; without it both halves share a tile.
_TILES = {"tile_M": 128, "tile_N": 192, "cluster_M": 2, "cluster_N": 1, "pingpong": True}
_TALL_TILES = {"tile_M": 192, "tile_N": 128, "cluster_M": 1, "cluster_N": 2, "pingpong": True}
# For packed rows, and for weight gradients, whose sums run over thousands of rows: the fastest of
# ten to twelve for the experts of the same model, on an H200 that drew its 700 W.
_PACKED_TILES = {"tile_M": 128, "tile_N": 192, "cluster_M": 1, "cluster_N": 2, "pingpong": True}
_PACKED_GELU_TILES = {**_TALL_TILES, "tile_M": 256, "pingpong": False}
_LONG_TILES = {"tile_M": 128, "tile_N": 256, "cluster_M": 2, "cluster_N": 1, "pingpong": False}
# Parts of a tile that an epilogue with an input (GELU's derivative) prefetches: all twelve, so that
# it waits for memory once a tile; quack's default is four.
_PARTS_AHEAD = (("epi_c_stage_base", 12),)
_MULTIPLE = 8  # elements: copies are of 16 bytes


# GELU and its derivative share one tanh, so the forward pass computes both: the product of the
# backward pass, whose epilogue is the slower one, then only multiplies.
@gemm_epilogue(outputs=("activated",), ops={"bias": RowVecLoad("bias")})
def _gelu_and_slope(acc: Any, bias: Any) -> Any:
    slope, activated = dgelu_tanh_approx(acc + bias, 1.0)
    return {"D": slope, "activated": activated}


@gemm_epilogue(reduces={"total": RowVecReduce("total")})
def _times_slope(acc: Any, c: Any) -> Any:
    value = acc * c
    return {"D": value, "total": value}


@gemm_epilogue(ops={"bias": RowVecLoad("bias")})
def _biased(acc: Any, bias: Any) -> Any:
    return {"D": acc + bias}


@gemm_epilogue()
def _plain(acc: Any) -> Any:
    return {"D": acc}


def supports_operands(weight: Tensor, *others: Tensor) -> bool:
    """Whether the kernels take these: 16 bit, not empty, a multiple of 16 bytes in the rows of
    each and the columns of the weight (which may be read as its transpose, and is contiguous)."""
    return (
        weight.is_cuda
        and weight.dtype in (torch.float16, torch.bfloat16)
        and weight.shape[-2] % _MULTIPLE == 0
        and weight.is_contiguous()
        and all(
            t.dtype == weight.dtype
            and t.numel() > 0
            and t.shape[-1] % _MULTIPLE == 0
            and t.data_ptr() % 16 == 0
            and t.stride(-1) == 1
            and all(step % _MULTIPLE == 0 for step in t.stride()[:-1])
            for t in (weight, *others)
        )
    )


def _multiply(
    epilogue: Any, x: Tensor, w_EKN: Tensor, out: Tensor, aux: Tensor | None = None,
    tiles: dict[str, int] | None = None, settings: tuple[tuple[str, int], ...] = (),
    first_row_E1: Tensor | None = None, **arguments: Tensor,
) -> None:  # fmt: skip
    if tiles is None:
        tiles = _TILES if first_row_E1 is None else _PACKED_TILES
    epilogue.gemm(
        x, w_EKN, out, aux, epi_args=arguments, b_kn=True,
        post_init_attrs=settings, cu_seqlens_m=first_row_E1, **tiles,
    )  # fmt: skip


def gelu(
    x_ERK: Tensor, w_EKN: Tensor, b_EN: Tensor, a_ERN: Tensor, slope_ERN: Tensor,
    first_row_E1: Tensor | None = None,
) -> None:  # fmt: skip
    """Write gelu(x w + b) to ``a_ERN`` and GELU's derivative at that place to ``slope_ERN``.

    With ``first_row_E1`` (int32, [E + 1]), here and below, rows are packed: [R, K] and [R, N], with
    product e from row ``first_row_E1[e]`` on. Rows behind the last are not read and not written.
    """
    tiles = _TILES if first_row_E1 is None else _PACKED_GELU_TILES
    _multiply(
        _gelu_and_slope, x_ERK, w_EKN, slope_ERN, tiles=tiles,
        first_row_E1=first_row_E1, activated=a_ERN, bias=b_EN,
    )  # fmt: skip


def times_slope_packed(
    dy_RK: Tensor, w_EKN: Tensor, slope_RN: Tensor, dh_RN: Tensor, first_row_E1: Tensor
) -> Tensor:
    """:func:`times_slope` of packed rows; returns the sums over the rows of each product [E, N]."""
    rows, width = slope_RN.shape
    size, batch = _TALL_TILES["tile_M"], w_EKN.shape[0]
    # each product begins a tile of its own, so there is a partial tile for each; unused sums are 0
    sums = slope_RN.new_zeros(rows // size + batch, width, dtype=torch.float32)
    _multiply(
        _times_slope, dy_RK, w_EKN, dh_RN, slope_RN, _TALL_TILES, _PARTS_AHEAD, first_row_E1,
        total=sums,
    )  # fmt: skip
    tiles_E = (first_row_E1.diff() + (size - 1)) // size
    end_E1 = tiles_E.cumsum(0)[:, None]
    tile_T = torch.arange(sums.shape[0], device=sums.device)
    own_ET = (tile_T >= end_E1 - tiles_E[:, None]) & (tile_T < end_E1)
    return torch.mm(own_ET.to(sums.dtype), sums).to(slope_RN.dtype)


def times_slope(dy_ERK: Tensor, w_EKN: Tensor, slope_ERN: Tensor, dh_ERN: Tensor) -> Tensor:
    """Write (dy w) * slope to ``dh_ERN``; returns its sum over R [E, N]."""
    batch, rows, width = slope_ERN.shape
    tiles = -(-rows // _TALL_TILES["tile_M"])
    sums = slope_ERN.new_empty(batch, tiles, width, dtype=torch.float32)
    _multiply(_times_slope, dy_ERK, w_EKN, dh_ERN, slope_ERN, _TALL_TILES, _PARTS_AHEAD, total=sums)
    return sums.sum(1).to(slope_ERN.dtype)


def product(
    x_ERK: Tensor, w_EKN: Tensor, b_EN: Tensor | None, y_ERN: Tensor,
    first_row_E1: Tensor | None = None,
) -> None:  # fmt: skip
    """Write x w + b to ``y_ERN``; ``w_EKN`` may be a transposed view."""
    if b_EN is None:
        _multiply(_plain, x_ERK, w_EKN, y_ERN, first_row_E1=first_row_E1)
    else:
        _multiply(_biased, x_ERK, w_EKN, y_ERN, first_row_E1=first_row_E1, bias=b_EN)


def weight_gradient_packed(
    x_RK: Tensor, dy_RN: Tensor, dw_EKN: Tensor, first_row_E1: Tensor
) -> None:
    """Write x^T dy over the rows of each product to ``dw_EKN``."""
    gemm(
        x_RK.t(), dy_RN.t(), dw_EKN, None, None, cu_seqlens_k=first_row_E1, **_LONG_TILES
    )  # fmt: skip
