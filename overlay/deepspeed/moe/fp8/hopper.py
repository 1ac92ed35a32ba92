"""FP8 products on a Hopper GPU by quack-kernels, with epilogues of our own.

An epilogue writes its result twice, in rows and transposed, as the next products need it: a pass
of its own to transpose takes longer than the product (docs/lab/fp8.md).

Sums stay in the tensor cores' accumulator, which holds fewer bits than fp32: these products sum
over a model's width or hidden width, never over tokens.

Importing this module imports quack, which takes seconds: only policy.py does so.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.moe.kernels.hopper_products import VERSION  # noqa: F401 (and its warnings' filter)
from quack.activation import dgelu_tanh_approx
from quack.epilogue.frontend import gemm_epilogue
from quack.epilogue.ops import RowVecLoad, RowVecReduce, Scalar
from torch import Tensor

from .quantise import MULTIPLE

# The fastest of twelve for the products of a 380M model, on an H200 (docs/lab/fp8.md).
_TILES = {"tile_M": 128, "tile_N": 256, "cluster_M": 2, "cluster_N": 1, "pingpong": False}
_UP_TILES = {"tile_M": 128, "tile_N": 192, "cluster_M": 2, "cluster_N": 1, "pingpong": False}
_DOWN_TILES = {"tile_M": 128, "tile_N": 128, "cluster_M": 1, "cluster_N": 2, "pingpong": True}
_FAST = (("fp8_slow_accum", False),)


@gemm_epilogue(
    outputs=("a", "a_turned"),
    ops={"bias": RowVecLoad("bias"), "factor": Scalar("factor"), "scale": Scalar("scale")},
)
def _up(acc: Any, bias: Any, factor: Any, scale: Any) -> Any:
    slope, activated = dgelu_tanh_approx(acc * factor + bias, 1.0)
    small = activated * scale
    return {"D": slope, "a": small, "a_turned": small}


@gemm_epilogue(
    outputs=("dh_turned",),
    reduces={"total": RowVecReduce("total")},
    ops={"factor": Scalar("factor"), "scale": Scalar("scale")},
)
def _down(acc: Any, c: Any, factor: Any, scale: Any) -> Any:
    value = acc * factor * c
    small = value * scale
    return {"D": small, "dh_turned": small, "total": value}


@gemm_epilogue(ops={"factor": Scalar("factor")})
def _product(acc: Any, factor: Any) -> Any:
    return {"D": acc * factor}


def supports_operands(a_EAK: Tensor, b_EBK: Tensor) -> bool:
    """Whether the kernels take these: on a GPU, not empty, in multiples of 16 bytes, contiguous."""
    return all(
        t.is_cuda and t.numel() > 0 and t.is_contiguous() and t.data_ptr() % 16 == 0
        and t.shape[1] % MULTIPLE == 0 and t.shape[2] % MULTIPLE == 0
        for t in (a_EAK, b_EBK)
    )  # fmt: skip


def _scalar(x: Tensor) -> Tensor:
    return x.reshape(1)


def up(
    x_ERM: Tensor, w_EHM: Tensor, b_EH: Tensor, factor: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See operators.py."""
    batch, rows, hidden = x_ERM.shape[0], x_ERM.shape[1], w_EHM.shape[1]
    a_ERH = x_ERM.new_empty(batch, rows, hidden)
    a_EHR = x_ERM.new_empty(batch, hidden, rows)
    slope_ERH = b_EH.new_empty(batch, rows, hidden)
    arguments = {
        "a": a_ERH, "a_turned": a_EHR.transpose(1, 2), "bias": b_EH.contiguous(),
        "factor": _scalar(factor), "scale": _scalar(scale),
    }  # fmt: skip
    _up.gemm(x_ERM, w_EHM, slope_ERH, epi_args=arguments, post_init_attrs=_FAST, **_UP_TILES)
    return a_ERH, a_EHR, slope_ERH


def down(
    dy_ERM: Tensor, w_EHM: Tensor, slope_ERH: Tensor, factor: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See operators.py."""
    batch, rows, hidden = slope_ERH.shape
    tiles = -(-rows // _DOWN_TILES["tile_M"])
    dh_ERH = dy_ERM.new_empty(batch, rows, hidden)
    dh_EHR = dy_ERM.new_empty(batch, hidden, rows)
    sums = slope_ERH.new_empty(batch, tiles, hidden, dtype=torch.float32)
    arguments = {
        "dh_turned": dh_EHR.transpose(1, 2), "total": sums,
        "factor": _scalar(factor), "scale": _scalar(scale),
    }  # fmt: skip
    _down.gemm(
        dy_ERM, w_EHM, dh_ERH, slope_ERH.contiguous(), epi_args=arguments,
        post_init_attrs=_FAST, **_DOWN_TILES,
    )  # fmt: skip
    return dh_ERH, dh_EHR, sums.sum(1).to(slope_ERH.dtype)


def product(a_EAK: Tensor, b_EBK: Tensor, factor: Tensor) -> Tensor:
    """See operators.py."""
    y_EAB = torch.empty(
        a_EAK.shape[0], a_EAK.shape[1], b_EBK.shape[1], dtype=torch.bfloat16, device=a_EAK.device
    )
    arguments = {"factor": _scalar(factor)}
    _product.gemm(a_EAK, b_EBK, y_EAB, epi_args=arguments, post_init_attrs=_FAST, **_TILES)
    return y_EAB
