"""The arithmetic of one AdaFactor step, on batches of units of one shape.

Source: Shazeer and Stern, arXiv 1804.04235: the factored second moment is Algorithm 4, the
elementwise one Algorithm 5 (here the case of one row), the defaults are Algorithm 6; first moment
and weight decay follow torch_optimizer 0.3.0.

Nothing here waits for the device: a clamp makes every decision that depends on a tensor.

Shape suffixes: N units, R rows, C columns, K rows of a padded part of a unit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Sequence

import torch
from deepspeed.utils.neutral import has_triton
from torch import Tensor

from .tags import CutUnit


class Settings(NamedTuple):
    """The options of a parameter group at one step; numbers on the host."""

    step_size: float
    beta2: float
    eps_square: float
    eps_scale: float
    clip: float
    beta1: float | None
    weight_decay: float
    scale_parameter: bool


def settings(group: dict[str, Any], step: int) -> Settings:
    """The settings of ``group`` at ``step``, counted from 1."""
    step_size = group["lr"]
    if group["relative_step"]:
        ceiling = 1e-6 * step if group["warmup_init"] else 1e-2
        step_size = min(ceiling, 1.0 / math.sqrt(step))
    return Settings(
        step_size,
        1.0 - math.pow(step, group["decay_rate"]),
        group["eps2"][0],
        group["eps2"][1],
        group["clip_threshold"],
        group["beta1"],
        group["weight_decay"],
        group["scale_parameter"],
    )


class Block(NamedTuple):
    """Whole units, as views: ``param``, ``grad``, ``moment`` NRC, ``row`` NR, ``col`` NC.

    ``row`` is None when R is 1, ``moment`` when there is no beta1.
    """

    param: Tensor
    grad: Tensor
    row: Tensor | None
    col: Tensor
    moment: Tensor | None


def update_blocks(blocks: Sequence[Block], s: Settings, dtype: torch.dtype) -> None:
    """One step for blocks that share R, C, dtypes and settings; computed in ``dtype``."""
    if _can_fuse(blocks[0], s, dtype):
        _update_fused(blocks, s)
        return
    grad = _joined([block.grad for block in blocks]).to(dtype)
    param = _joined([block.param for block in blocks]).to(dtype)
    counts = [block.grad.shape[0] for block in blocks]

    squares = grad.square()
    row_sq, col_sq = _sums(squares, grad.shape[1] > 1)
    col = _blend([block.col for block in blocks], col_sq, grad.shape[1], counts, s)
    row = None
    if row_sq is not None:
        rows = [block.row for block in blocks if block.row is not None]
        row = _blend(rows, row_sq, grad.shape[2], counts, s)
    direction = _precondition(grad, _row_factor(row), col, out=squares)

    numel = grad.shape[1] * grad.shape[2]
    rate, length = _rates(_norm(param), _norm(direction), numel, s)
    direction.mul_(length.view(-1, 1, 1))
    decay = None
    if s.weight_decay:
        decay = (param * (rate * s.weight_decay).view(-1, 1, 1)).split(counts)
    moments = [block.moment for block in blocks if block.moment is not None]
    _apply([block.param for block in blocks], moments, direction.split(counts), decay, s)


_GRID = 65535  # limit of CUDA's second grid axis, which counts units


def _can_fuse(block: Block, s: Settings, dtype: torch.dtype) -> bool:
    """Whether fused_update.py can update blocks like this one."""
    return (
        block.param.is_cuda
        and block.param.dtype == block.grad.dtype == dtype == torch.float32
        and block.row is not None
        and s.beta1 is None
        and block.param.shape[0] <= _GRID
        and has_triton()
    )


def _update_fused(blocks: Sequence[Block], s: Settings) -> None:
    """:func:`update_blocks` in three passes over the memory."""
    from . import fused_update

    for block in blocks:
        fused_update.step(block.grad.contiguous(), block.param, block.row, block.col, s)


class CutUpdate:
    """One step for this rank's part of a cut unit, in three phases around two all-reduces.

    ``param``, ``grad`` and ``moment`` are 1-D views of the part, whose first element is
    ``start`` of the unit; ``row`` (R) and ``col`` (C) are of the whole unit. The part is padded
    with zeros to whole rows, so that ordinary reductions give its share of the sums.
    """

    def __init__(self, part: Block, start: int, cut: CutUnit, s: Settings) -> None:
        self.part, self.cut, self.s = part, cut, s
        self.first_row, self.lead = divmod(start, cut.cols)
        self.length = part.param.numel()
        self.row_count = -(-(self.lead + self.length) // cut.cols)

    def sums(self, message: Tensor) -> None:
        """Phase 1: add this rank's row sums, column sums and squared norm to ``message``."""
        padded = self.part.col.new_zeros(self.row_count * self.cut.cols)
        self._inner(padded).copy_(self.part.grad)
        self.grad = padded.view(1, self.row_count, self.cut.cols)
        self.squares = self.grad.square()
        row_sq, col_sq = _sums(self.squares, self.cut.rows > 1)
        rows, cols, norm = message.split([self.cut.row_count, self.cut.cols, 1])
        if row_sq is not None:
            rows[self.first_row : self.first_row + self.row_count].copy_(row_sq[0])
        cols.copy_(col_sq[0])
        param = self.part.param.to(padded.dtype)
        norm.copy_(_norm(param.view(1, -1, 1)).square_())

    def direct(self, message: Tensor, square_norm: Tensor) -> None:
        """Phase 2: from the summed ``message``, the direction; write its squared norm."""
        cut, s = self.cut, self.s
        rows, cols, self.param_sq = message.split([cut.row_count, cut.cols, 1])
        col = _blend([self.part.col.view(1, -1)], cols.view(1, -1), cut.rows, [1], s)
        factor = None
        if self.part.row is not None:
            row = _blend([self.part.row.view(1, -1)], rows.view(1, -1), cut.cols, [1], s)
            factor = _row_factor(row)[:, self.first_row : self.first_row + self.row_count]
        self.direction = _precondition(self.grad, factor, col, out=self.squares)
        square_norm.copy_(_norm(self.direction).square_())

    def apply(self, square_norm: Tensor) -> None:
        """Phase 3: from the summed squared norm of the direction (1 element), the new values."""
        s, param = self.s, self.part.param
        numel = self.cut.rows * self.cut.cols
        rate, length = _rates(self.param_sq.sqrt(), square_norm.sqrt(), numel, s)
        change = self._inner(self.direction.view(-1)).mul_(length)
        decay = [param * (rate * s.weight_decay)] if s.weight_decay else None
        moments = [] if self.part.moment is None else [self.part.moment]
        _apply([param], moments, [change], decay, s)

    def _inner(self, padded: Tensor) -> Tensor:
        return padded[self.lead : self.lead + self.length]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _sums(squares_nrc: Tensor, factored: bool) -> tuple[Tensor | None, Tensor]:
    """Sums over columns (NR; None unless ``factored``) and over rows (NC)."""
    if not factored:
        return None, squares_nrc.squeeze(1)
    return squares_nrc.sum(dim=2), squares_nrc.sum(dim=1)


def _norm(tensor_nrc: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor_nrc, dim=(1, 2))


def _blend(
    states: list[Tensor], sums: Tensor, divisor: int, counts: Sequence[int], s: Settings
) -> Tensor:
    """Update the running means in ``states`` by ``sums / divisor``; return them joined."""
    fresh = (sums / divisor).add_(s.eps_square)
    torch._foreach_mul_(states, s.beta2)
    torch._foreach_add_(states, list(fresh.split(list(counts))), alpha=1.0 - s.beta2)
    return _joined(states)


def _row_factor(row_nr: Tensor | None) -> Tensor | None:
    return None if row_nr is None else (row_nr / row_nr.mean(dim=1, keepdim=True)).rsqrt_()


def _precondition(
    grad_nrc: Tensor, row_factor: Tensor | None, col_nc: Tensor, out: Tensor
) -> Tensor:
    """Gradient over the root of the second moment, NRC, written to ``out``."""
    direction = torch.mul(grad_nrc, col_nc.rsqrt().unsqueeze(1), out=out)
    return direction if row_factor is None else direction.mul_(row_factor.unsqueeze(2))


def _rates(
    param_norm_n: Tensor, direction_norm_n: Tensor, numel: int, s: Settings
) -> tuple[Tensor, Tensor]:
    """Each unit's learning rate, and the rate over the clipping divisor max(1, RMS / threshold)."""
    root = math.sqrt(numel)
    if s.scale_parameter:
        rate = (param_norm_n / root).clamp_(min=s.eps_scale).mul_(s.step_size)
    else:
        rate = torch.full_like(param_norm_n, s.step_size)
    divisor = (direction_norm_n / (root * s.clip)).clamp_(min=1.0)
    return rate, rate / divisor


def _apply(
    params: list[Tensor],
    moments: list[Tensor],
    changes: Sequence[Tensor],
    decay: Sequence[Tensor] | None,
    s: Settings,
) -> None:
    changes = list(changes)
    if s.beta1 is not None:
        torch._foreach_mul_(moments, s.beta1)
        torch._foreach_add_(moments, changes, alpha=1.0 - s.beta1)
        changes = moments
    if decay is not None:
        torch._foreach_sub_(params, list(decay))
    torch._foreach_sub_(params, changes)
