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
from torch import Tensor

# deprecation warnings of the package and of cutlass, while a kernel compiles
warnings.filterwarnings("ignore", module=r"(quack|cutlass)\b")
VERSION = f"quack-kernels {version('quack-kernels')}"
# The fastest of ten tiles and three clusters for the products of a 380M model, on an H100;
# cluster_M and cluster_N are the multiprocessors that share an operand.
_TILES = {"tile_M": 128, "tile_N": 192, "cluster_M": 2, "cluster_N": 1}
_TALL_TILES = {"tile_M": 192, "tile_N": 128, "cluster_M": 1, "cluster_N": 2}
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
    tiles: dict[str, int] = _TILES, settings: tuple[tuple[str, int], ...] = (), **arguments: Tensor,
) -> None:  # fmt: skip
    epilogue.gemm(
        x, w_EKN, out, aux, epi_args=arguments, pingpong=True, b_kn=True,
        post_init_attrs=settings, **tiles,
    )  # fmt: skip


def gelu(x_ERK: Tensor, w_EKN: Tensor, b_EN: Tensor, a_ERN: Tensor, slope_ERN: Tensor) -> None:
    """Write gelu(x w + b) to ``a_ERN`` and GELU's derivative at that place to ``slope_ERN``."""
    _multiply(_gelu_and_slope, x_ERK, w_EKN, slope_ERN, activated=a_ERN, bias=b_EN)


def times_slope(dy_ERK: Tensor, w_EKN: Tensor, slope_ERN: Tensor, dh_ERN: Tensor) -> Tensor:
    """Write (dy w) * slope to ``dh_ERN``; returns its sum over R [E, N]."""
    batch, rows, width = slope_ERN.shape
    tiles = -(-rows // _TALL_TILES["tile_M"])
    sums = slope_ERN.new_empty(batch, tiles, width, dtype=torch.float32)
    _multiply(_times_slope, dy_ERK, w_EKN, dh_ERN, slope_ERN, _TALL_TILES, _PARTS_AHEAD, total=sums)
    return sums.sum(1).to(slope_ERN.dtype)


def product(x_ERK: Tensor, w_EKN: Tensor, b_EN: Tensor | None, y_ERN: Tensor) -> None:
    """Write x w + b to ``y_ERN``; ``w_EKN`` may be a transposed view."""
    if b_EN is None:
        _multiply(_plain, x_ERK, w_EKN, y_ERN)
    else:
        _multiply(_biased, x_ERK, w_EKN, y_ERN, bias=b_EN)
