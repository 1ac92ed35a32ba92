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
from quack.activation import dgelu_tanh_approx, gelu_tanh_approx
from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.ops import RowVecLoad, RowVecReduce
from quack.gemm_sm90 import GemmSm90
from torch import Tensor

# deprecation warnings of the package and of cutlass, while a kernel compiles
warnings.filterwarnings("ignore", module=r"(quack|cutlass)\b")
VERSION = f"quack-kernels {version('quack-kernels')}"
# The fastest of ten tiles and three clusters for the products of a 380M model, on an H100;
# cluster_M and cluster_N are the multiprocessors that share an operand.
_TILES = {"tile_M": 128, "tile_N": 192, "cluster_M": 2, "cluster_N": 1}
_TALL_TILES = {"tile_M": 192, "tile_N": 128, "cluster_M": 1, "cluster_N": 2}
# Parts of a tile that an epilogue with an input (GELU's derivative) prefetches: all twelve, so that
# it waits for memory once a tile; 2.81 ms, and 3.09 ms with quack's default of four (an H200).
_PARTS_AHEAD = 12
_MULTIPLE = 8  # elements: copies are of 16 bytes


@gemm_epilogue(outputs=("activated",), ops={"bias": RowVecLoad("bias")})
def _gelu(acc: Any, bias: Any) -> Any:
    value = acc + bias
    return {"D": value, "activated": gelu_tanh_approx(value)}


# The name is part of the key of quack's cache on disk, _PARTS_AHEAD is not: the name distinguishes
# these kernels from older ones called _gelu_derivative.
@gemm_epilogue(reduces={"total": RowVecReduce("total")})
def _gelu_derivative_ahead(acc: Any, c: Any) -> Any:
    value, _ = dgelu_tanh_approx(c, acc)
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
    tall: bool = False, **arguments: Tensor,
) -> None:  # fmt: skip
    tiles = _TALL_TILES if tall else _TILES
    epilogue.gemm(x, w_EKN, out, aux, epi_args=arguments, pingpong=True, b_kn=True, **tiles)


def gelu(x_ERK: Tensor, w_EKN: Tensor, b_EN: Tensor, a_ERN: Tensor, h_ERN: Tensor) -> None:
    """Write gelu(x w + b) to ``a_ERN`` and the input of GELU to ``h_ERN``."""
    _multiply(_gelu, x_ERK, w_EKN, h_ERN, activated=a_ERN, bias=b_EN)


def gelu_derivative(dy_ERK: Tensor, w_EKN: Tensor, h_ERN: Tensor, dh_ERN: Tensor) -> Tensor:
    """Write (dy w) * gelu'(h) to ``dh_ERN``; returns its sum over R [E, N]."""
    batch, rows, width = h_ERN.shape
    tiles = -(-rows // _TALL_TILES["tile_M"])
    sums = h_ERN.new_empty(batch, tiles, width, dtype=torch.float32)
    # an attribute of quack's class, which it reads while a kernel compiles
    others = GemmSm90.epi_c_stage_base
    GemmSm90.epi_c_stage_base = _PARTS_AHEAD
    try:
        _multiply(_gelu_derivative_ahead, dy_ERK, w_EKN, dh_ERN, h_ERN, tall=True, total=sums)
    finally:
        GemmSm90.epi_c_stage_base = others
    return sums.sum(1).to(h_ERN.dtype)


def product(x_ERK: Tensor, w_EKN: Tensor, b_EN: Tensor | None, y_ERN: Tensor) -> None:
    """Write x w + b to ``y_ERN``; ``w_EKN`` may be a transposed view."""
    if b_EN is None:
        _multiply(_plain, x_ERK, w_EKN, y_ERN)
    else:
        _multiply(_biased, x_ERK, w_EKN, y_ERN, bias=b_EN)
