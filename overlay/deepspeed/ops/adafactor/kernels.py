"""The passes of an AdaFactor step over a whole unit, three instead of a dozen; by Triton.

Written out in torch's operations (update.py), every square, product and norm is read and written by
itself. Here the first pass reads gradient and parameter and leaves sums, the second reads the
gradient for the norm of the direction, the third writes the parameter; the direction is computed
where it is needed. Sums are made in a fixed order, so a step repeats to the bit.

Imported only where there is a CUDA device, since it needs Triton.

Shape suffixes: N units, R rows, C columns; T, U tiles of rows, of columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 32, 256  # of a tile: 64 elements a thread


@triton.jit
def _tile(tiles_c, R, C, BR: tl.constexpr, BC: tl.constexpr):
    n, tile = tl.program_id(1), tl.program_id(0)
    r = tile // tiles_c * BR + tl.arange(0, BR)
    c = tile % tiles_c * BC + tl.arange(0, BC)
    place = (n.to(tl.int64) * R + r)[:, None] * C + c[None, :]
    return n, tile, r, c, place, (r < R)[:, None] & (c < C)[None, :]


@triton.jit
def _sums(g, p, row, col, norm, tiles_r, tiles_c, R, C, BR: tl.constexpr, BC: tl.constexpr):
    n, tile, r, c, place, inside = _tile(tiles_c, R, C, BR, BC)
    value = tl.load(g + place, inside, 0.0)
    square = value * value
    # row: [N, R, U]; col: [N, T, C]; norm: [N, T * U]
    rows = (n.to(tl.int64) * R + r) * tiles_c + tile % tiles_c
    tl.store(row + rows, tl.sum(square, 1), r < R)
    columns = (n.to(tl.int64) * tiles_r + tile // tiles_c) * C + c
    tl.store(col + columns, tl.sum(square, 0), c < C)
    weight = tl.load(p + place, inside, 0.0)
    tl.store(norm + n * tiles_r * tiles_c + tile, tl.sum(tl.sum(weight * weight, 1), 0))


@triton.jit
def _direction(g, row, col, n, r, c, place, inside, R, C):
    by_row = tl.load(row + n * R + r, r < R, 0.0)
    by_column = tl.load(col + n * C + c, c < C, 0.0)
    return tl.load(g + place, inside, 0.0) * by_column[None, :] * by_row[:, None]


@triton.jit
def _norms(g, row, col, norm, tiles_r, tiles_c, R, C, BR: tl.constexpr, BC: tl.constexpr):
    n, tile, r, c, place, inside = _tile(tiles_c, R, C, BR, BC)
    value = _direction(g, row, col, n, r, c, place, inside, R, C)
    tl.store(norm + n * tiles_r * tiles_c + tile, tl.sum(tl.sum(value * value, 1), 0))


@triton.jit
def _write(g, p, row, col, length, tiles_c, R, C, BR: tl.constexpr, BC: tl.constexpr):
    n, _, r, c, place, inside = _tile(tiles_c, R, C, BR, BC)
    value = _direction(g, row, col, n, r, c, place, inside, R, C)
    weight = tl.load(p + place, inside, 0.0)
    tl.store(p + place, weight - value * tl.load(length + n), inside)


def _grid(cube: torch.Size) -> tuple[tuple[int, int], int, int, dict[str, Any]]:
    units, rows, columns = cube
    tiles_r, tiles_c = triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS)
    sizes = {"R": rows, "C": columns, "BR": _ROWS, "BC": _COLUMNS}
    return (tiles_r * tiles_c, units), tiles_r, tiles_c, sizes


def sums(grad_NRC: Tensor, param_NRC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the gradient's squares over columns [N, R] and rows [N, C], of the parameter's [N]."""
    grid, tiles_r, tiles_c, sizes = _grid(grad_NRC.shape)
    units, rows, columns = grad_NRC.shape
    row = grad_NRC.new_empty(units, rows, tiles_c)
    col = grad_NRC.new_empty(units, tiles_r, columns)
    norm = grad_NRC.new_empty(units, tiles_r * tiles_c)
    _sums[grid](grad_NRC, param_NRC, row, col, norm, tiles_r, tiles_c, **sizes)
    return row.sum(2), col.sum(1), norm.sum(1)


def direction_square(grad_NRC: Tensor, row_NR: Tensor, col_NC: Tensor) -> Tensor:
    """The sum [N] of squares of gradient * row * col."""
    grid, tiles_r, tiles_c, sizes = _grid(grad_NRC.shape)
    norm = grad_NRC.new_empty(grad_NRC.shape[0], tiles_r * tiles_c)
    _norms[grid](grad_NRC, row_NR, col_NC, norm, tiles_r, tiles_c, **sizes)
    return norm.sum(1)


def write(
    grad_NRC: Tensor, param_NRC: Tensor, row_NR: Tensor, col_NC: Tensor, length_N: Tensor
) -> None:
    """param -= gradient * row * col * length."""
    grid, _, tiles_c, sizes = _grid(grad_NRC.shape)
    _write[grid](grad_NRC, param_NRC, row_NR, col_NC, length_N, tiles_c, **sizes)
