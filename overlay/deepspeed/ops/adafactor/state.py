"""The optimizer's state of one parameter or flat partition, and the views that a step works on.

A parameter outside of ZeRO has ``step`` (int) and, all 1-D, ``exp_avg_sq_row`` (U*R) and
``exp_avg_sq_col`` (U*C), or ``exp_avg_sq`` (every element) when its units have one row. A tagged
partition has ``step`` and ``factors``: for each param_id a dict of ``first_unit`` (int), ``row``
(units * R; absent when R is 1) and ``col`` (units * C), for all the units that the partition
touches; a unit that several ranks hold parts of has the same values on each. With beta1 both
have ``exp_avg``: 1-D, as long as the parameter or partition. Plain tensors, ints and dicts:
``torch.load(weights_only=True)`` reads them.
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple

import torch
from torch import Tensor

from .shards import BATCH_DIMS_ATTRIBUTE, Geometry, ShardSlice, geometry, unit_parts
from .tags import CutUnit, PartitionTag
from .update import Block, CutUpdate, Settings

State = Dict[str, Any]


def working_dtype(param: Tensor) -> torch.dtype:
    """float64 for float64; float32 for every other dtype."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def whole_geometry(param: Tensor) -> Geometry:
    """Units, rows and columns of a parameter that is not a tagged partition."""
    return geometry(param.shape, getattr(param, BATCH_DIMS_ATTRIBUTE, None))


def new_state(param: Tensor, tag: PartitionTag | None, first_moment: bool) -> State:
    """A state of zeros at step 0. ``tag`` is None for a parameter that is updated as a whole."""

    def zeros(numel: int) -> Tensor:
        return torch.zeros(numel, dtype=working_dtype(param), device=param.device)

    state: State = {"step": 0}
    if first_moment:
        state["exp_avg"] = zeros(param.numel())
    if tag is not None:
        state["factors"] = {piece.param_id: _new_factors(piece, zeros) for piece in tag.slices}
        return state
    form = whole_geometry(param)
    if form.rows == 1:
        state["exp_avg_sq"] = zeros(param.numel())
    else:
        state["exp_avg_sq_row"] = zeros(form.units * form.rows)
        state["exp_avg_sq_col"] = zeros(form.units * form.cols)
    return state


def _new_factors(piece: ShardSlice, zeros: Any) -> State:
    form = piece.geometry
    first, last = piece.unit_range
    factors: State = {"first_unit": first, "col": zeros((last - first) * form.cols)}
    if form.rows > 1:
        factors["row"] = zeros((last - first) * form.rows)
    return factors


def whole_block(param: Tensor, grad: Tensor, state: State, form: Geometry) -> Block:
    """A contiguous parameter of geometry ``form``, and its gradient, as one block."""
    cube = (form.units, form.rows, form.cols)
    row = state["exp_avg_sq_row"].view(form.units, form.rows) if form.rows > 1 else None
    col = state["exp_avg_sq" if form.rows == 1 else "exp_avg_sq_col"]
    block = Block(param, grad.reshape(cube), row, col.view(-1, form.cols), state.get("exp_avg"))
    return _as_cube(block, cube)


class ShardViews(NamedTuple):
    """The units of a tagged partition as views, and the tensors that they are views of."""

    sources: tuple[Any, ...]
    blocks: list[Block]
    parts: list[tuple[Block, int, CutUnit]]
    """Of cut units: the part of this rank, its first element in the unit, the unit."""


def shard_views(param: Tensor, grad: Tensor, state: State, tag: PartitionTag) -> ShardViews:
    """Views of the whole units and of the parts of cut units in a tagged partition.

    There are a few hundred, which takes the host milliseconds: :func:`still_views` allows reuse.
    """
    cuts = {(cut.param_id, cut.unit): cut for cut in tag.cuts}
    moment = state.get("exp_avg")
    blocks, parts = [], []
    for piece in tag.slices:
        form = piece.geometry
        factors = state["factors"][piece.param_id]
        for part in unit_parts(piece):
            low = piece.offset_in_partition + part.offset_in_slice
            high = low + part.length
            first = part.unit - factors["first_unit"]
            units = slice(first, first + part.count)
            row = factors["row"].view(-1, form.rows)[units] if form.rows > 1 else None
            block = Block(
                param[low:high],
                grad[low:high],
                row,
                factors["col"].view(-1, form.cols)[units],
                None if moment is None else moment[low:high],
            )
            if part.whole:
                blocks.append(_as_cube(block, (part.count, form.rows, form.cols)))
            else:
                parts.append((block, part.start, cuts[(piece.param_id, part.unit)]))
    return ShardViews(_sources(param, grad, state, tag), blocks, parts)


def still_views(
    views: ShardViews | None, param: Tensor, grad: Tensor, state: State, tag: PartitionTag
) -> bool:
    """Whether ``views`` are views of these arguments."""
    if views is None:
        return False
    found = zip(views.sources, _sources(param, grad, state, tag))
    return all(a is b or (isinstance(a, int) and a == b) for a, b in found)


def _sources(param: Tensor, grad: Tensor, state: State, tag: PartitionTag) -> tuple[Any, ...]:
    # the objects themselves: while they are referenced no other object can have their address
    return (
        param.data_ptr(),
        grad.data_ptr(),
        grad.dtype,
        state["factors"],
        state.get("exp_avg"),
        tag,
    )


def cut_updates(views: ShardViews, s: Settings) -> list[CutUpdate]:
    """This step's work on the cut units."""
    return [CutUpdate(block, start, cut, s) for block, start, cut in views.parts]


def _as_cube(block: Block, cube: tuple[int, int, int]) -> Block:
    moment = None if block.moment is None else block.moment.view(cube)
    return Block(block.param.view(cube), block.grad.view(cube), block.row, block.col, moment)
