"""An AdaFactor step of whole units in three passes over the memory instead of a dozen; in Triton.

With torch's operations (update.py) every square, product and norm is a pass of its own. Here the
first pass reads gradient and parameter and writes sums, the second reads the gradient for the norm
of the direction, the third writes the parameter. Each pass computes the direction and the unit's
scalars again. Sums have a fixed order, so that a step is reproducible to the bit.

Imported only where there is a CUDA device, since it needs Triton.

Shape suffixes: N units, R rows, C columns; T, U tiles of rows, of columns; V segments of rows.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 32, 256  # of a tile: 64 elements a thread
_SEGMENT = 256  # rows or columns whose running means one program updates


@triton.jit
def _tile(tiles_c, R, C, BR: tl.constexpr, BC: tl.constexpr):
    n, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    r = tile // tiles_c * BR + tl.arange(0, BR)
    c = tile % tiles_c * BC + tl.arange(0, BC)
    place = (n * R + r)[:, None] * C + c[None, :]
    return n, tile, r, c, place, (r < R)[:, None] & (c < C)[None, :]


@triton.jit
def _sums(g, p, row, col, norm, tiles_r, tiles_c, R, C, BR: tl.constexpr, BC: tl.constexpr):
    n, tile, r, c, place, inside = _tile(tiles_c, R, C, BR, BC)
    value = tl.load(g + place, inside, 0.0)
    square = value * value
    # row: [N, U, R]; col: [N, T, C]; norm: [N, T * U]
    tl.store(row + (n * tiles_c + tile % tiles_c) * R + r, tl.sum(square, 1), r < R)
    tl.store(col + (n * tiles_r + tile // tiles_c) * C + c, tl.sum(square, 0), c < C)
    weight = tl.load(p + place, inside, 0.0)
    tl.store(norm + n * tiles_r * tiles_c + tile, tl.sum(tl.sum(weight * weight, 1), 0))


@triton.jit
def _means(
    row, col, row_state, col_state, total, tiles_r, tiles_c, segments, R, C, beta2, eps,
    SEG: tl.constexpr,
):  # fmt: skip
    """Update the running means; ``total`` [N, V]: sums of the rows' running means."""
    n, i = tl.program_id(1).to(tl.int64), tl.program_id(0)
    if i < segments:
        at = i * SEG + tl.arange(0, SEG)
        inside = at < R
        fresh = tl.zeros((SEG,), tl.float32)
        for u in range(tiles_c):
            fresh += tl.load(row + (n * tiles_c + u) * R + at, inside, 0.0)
        old = tl.load(row_state + n * R + at, inside, 0.0)
        new = tl.where(inside, old * beta2 + (fresh / C + eps) * (1.0 - beta2), 0.0)
        tl.store(row_state + n * R + at, new, inside)
        tl.store(total + n * segments + i, tl.sum(new, 0))
    else:
        at = (i - segments) * SEG + tl.arange(0, SEG)
        inside = at < C
        fresh = tl.zeros((SEG,), tl.float32)
        for t in range(tiles_r):
            fresh += tl.load(col + (n * tiles_r + t) * C + at, inside, 0.0)
        old = tl.load(col_state + n * C + at, inside, 0.0)
        tl.store(col_state + n * C + at, old * beta2 + (fresh / R + eps) * (1.0 - beta2), inside)


@triton.jit
def _total(parts, count, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    return tl.sum(tl.load(parts + at, at < count, 0.0), 0)


@triton.jit
def _direction(
    g, row_state, col_state, total, segments, n, r, c, place, inside, R, C, SEGMENTS: tl.constexpr
):
    mean = _total(total + n * segments, segments, SEGMENTS) / R
    row = tl.load(row_state + n * R + r, r < R, 1.0)
    col = tl.load(col_state + n * C + c, c < C, 1.0)
    value = tl.load(g + place, inside, 0.0) * tl.rsqrt(col)[None, :]
    return value * tl.rsqrt(row / mean)[:, None]


@triton.jit
def _norms(
    g, row_state, col_state, total, norm, tiles_r, tiles_c, segments, R, C,
    BR: tl.constexpr, BC: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    n, tile, r, c, place, inside = _tile(tiles_c, R, C, BR, BC)
    value = _direction(
        g, row_state, col_state, total, segments, n, r, c, place, inside, R, C, SEGMENTS
    )
    tl.store(norm + n * tiles_r * tiles_c + tile, tl.sum(tl.sum(value * value, 1), 0))


@triton.jit
def _write(
    g, p, row_state, col_state, total, param_norm, norm, tiles_r, tiles_c, segments, R, C,
    step_size, eps_scale, clip, weight_decay,
    SCALED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, SEGMENTS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    n, _, r, c, place, inside = _tile(tiles_c, R, C, BR, BC)
    value = _direction(
        g, row_state, col_state, total, segments, n, r, c, place, inside, R, C, SEGMENTS
    )
    tiles = tiles_r * tiles_c
    numel = R.to(tl.float32) * C
    rate = step_size
    if SCALED:
        square = _total(param_norm + n * tiles, tiles, TILES)
        rate = step_size * tl.maximum(tl.sqrt(square / numel), eps_scale)
    rms = tl.sqrt(_total(norm + n * tiles, tiles, TILES) / numel)
    length = rate / tl.maximum(rms / clip, 1.0)
    weight = tl.load(p + place, inside, 0.0)
    tl.store(p + place, weight - weight * (rate * weight_decay) - value * length, inside)


def step(grad_NRC: Tensor, param_NRC: Tensor, row_NR: Tensor, col_NC: Tensor, s: Any) -> None:
    """One step of whole units, contiguous and in fp32, with ``s`` of :class:`~.update.Settings`
    without a first moment; ``row_NR`` and ``col_NC`` are the running means."""
    units, rows, columns = grad_NRC.shape
    tiles_r, tiles_c = triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS)
    segments = triton.cdiv(rows, _SEGMENT)
    new = grad_NRC.new_empty
    row, col = new(units, tiles_c, rows), new(units, tiles_r, columns)
    param_norm, norm = new(units, tiles_r * tiles_c), new(units, tiles_r * tiles_c)
    total = new(units, segments)
    every: Any = (tiles_r * tiles_c, units)
    sizes: Any = {"R": rows, "C": columns, "tiles_r": tiles_r, "tiles_c": tiles_c}
    tile: Any = {"BR": _ROWS, "BC": _COLUMNS}
    count: Any = {"segments": segments}
    known: Any = {"SEGMENTS": triton.next_power_of_2(segments)}
    _sums[every](grad_NRC, param_NRC, row, col, param_norm, **sizes, **tile)
    _means[(segments + triton.cdiv(columns, _SEGMENT), units)](
        row, col, row_NR, col_NC, total, **sizes, **count,
        beta2=s.beta2, eps=s.eps_square, SEG=_SEGMENT,
    )  # fmt: skip
    _norms[every](grad_NRC, row_NR, col_NC, total, norm, **sizes, **count, **tile, **known)
    _write[every](
        grad_NRC, param_NRC, row_NR, col_NC, total, param_norm, norm, **sizes, **count,
        step_size=float(s.step_size), eps_scale=float(s.eps_scale), clip=float(s.clip),
        weight_decay=float(s.weight_decay),
        SCALED=s.scale_parameter, **tile, **known,
        TILES=triton.next_power_of_2(tiles_r * tiles_c),
    )  # fmt: skip
