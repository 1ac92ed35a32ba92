"""Where the parameters of a ZeRO group lie in its flat partitions. Arithmetic only, no tensors.

ZeRO-1/2 (deepspeed/runtime/zero/stage2.py at bd3ebd) joins the parameters of a group into one
flat buffer, pads its end to a multiple of twice the number of processes, and gives each process
one contiguous partition, all of one size. A partition boundary may lie anywhere: inside a
parameter, an expert or a row.

Legend: a parameter is U *units* of R rows and C columns; AdaFactor treats each unit by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Sequence

#: The attribute of a model parameter that says how many of its leading dimensions are a batch.
BATCH_DIMS_ATTRIBUTE = "adafactor_batch_dims"


class Geometry(NamedTuple):
    """A parameter as AdaFactor sees it: ``units`` matrices of ``rows`` x ``cols`` elements.

    A vector is one row, and so is a matrix with one column: with a single row or column the
    factored second moment equals the elementwise one.
    """

    units: int
    rows: int
    cols: int

    @property
    def unit_numel(self) -> int:
        return self.rows * self.cols


def geometry(shape: Sequence[int], batch_dims: int | None = None) -> Geometry:
    """Units, rows and columns of a parameter of ``shape``.

    The first ``batch_dims`` dimensions count the units; by default all but the last two. Raises
    ValueError unless none, one or two dimensions remain.
    """
    dims = len(shape)
    batch = max(0, dims - 2) if batch_dims is None else batch_dims
    if not max(0, dims - 2) <= batch <= dims:
        raise ValueError(
            f"{BATCH_DIMS_ATTRIBUTE} is {batch} for shape {tuple(shape)}, expected "
            f"{max(0, dims - 2)} to {dims}, so that each unit is a matrix, a vector or a number"
        )
    units, numel = product(shape[:batch]), product(shape[batch:])
    rows = shape[batch] if dims - batch == 2 else 1
    if rows == 1 or rows == numel:
        return Geometry(units, 1, numel)
    return Geometry(units, rows, numel // rows if rows else 0)


def keep_batch_dims(params: Sequence[Any], copies: Sequence[Any]) -> None:
    """Give each of ``copies`` the attribute of its parameter for batch dimensions, if it has one.

    A clone does not keep a tensor's attributes: the fp32 copies of 16-bit training would be
    factored across experts.
    """
    for param, copy in zip(params, copies):
        if hasattr(param, BATCH_DIMS_ATTRIBUTE):
            setattr(copy, BATCH_DIMS_ATTRIBUTE, getattr(param, BATCH_DIMS_ATTRIBUTE))


class ShardSlice(NamedTuple):
    """The elements of one parameter that lie in one partition; offsets count elements."""

    param_id: int
    shape: tuple[int, ...]
    offset_in_param: int
    length: int
    offset_in_partition: int
    batch_dims: int | None = None

    @property
    def geometry(self) -> Geometry:
        return geometry(self.shape, self.batch_dims)

    @property
    def unit_range(self) -> tuple[int, int]:
        """The first unit of the slice and the one after its last."""
        size = self.geometry.unit_numel
        return self.offset_in_param // size, -(-(self.offset_in_param + self.length) // size)


class UnitPart(NamedTuple):
    """``length`` elements from ``offset_in_slice`` on: whole units, or a part of one.

    For whole units ``start`` is 0 and ``count`` their number. For a part ``count`` is 1 and
    ``start`` the first element within the unit.
    """

    unit: int
    count: int
    start: int
    length: int
    offset_in_slice: int
    whole: bool


def unit_parts(piece: ShardSlice) -> list[UnitPart]:
    """Split a slice into a part of a unit, whole units, and a part again; each may be absent."""
    size = piece.geometry.unit_numel
    begin, end = piece.offset_in_param, piece.offset_in_param + piece.length
    first_whole, last_whole = -(-begin // size), end // size
    parts = []
    if begin % size:
        length = min(first_whole * size, end) - begin
        parts.append(UnitPart(begin // size, 1, begin % size, length, 0, False))
    if first_whole < last_whole:
        count = last_whole - first_whole
        offset = first_whole * size - begin
        parts.append(UnitPart(first_whole, count, 0, count * size, offset, True))
    if end % size and last_whole * size >= begin:
        offset = last_whole * size - begin
        parts.append(UnitPart(last_whole, 1, 0, end % size, offset, False))
    return parts


def shard_slices(
    shapes: Sequence[Sequence[int]],
    partition_size: int,
    rank: int,
    batch_dims: Sequence[int | None] | None = None,
    param_ids: Sequence[int] | None = None,
) -> list[ShardSlice]:
    """The contents of partition ``rank``, in order.

    ``shapes`` are those of the group's parameters in flattened order. Partition ``rank`` holds
    elements ``rank * partition_size`` to ``(rank + 1) * partition_size`` of the flat buffer;
    elements after the last parameter are padding and belong to no slice. ``param_ids`` name the
    parameters (by default their place in ``shapes``).
    """
    begin, end = rank * partition_size, (rank + 1) * partition_size
    slices = []
    position = 0
    for index, shape in enumerate(shapes):
        numel = product(shape)
        low, high = max(begin, position), min(end, position + numel)
        if low < high:
            slices.append(
                ShardSlice(
                    index if param_ids is None else param_ids[index],
                    tuple(shape),
                    low - position,
                    high - low,
                    low - begin,
                    None if batch_dims is None else batch_dims[index],
                )
            )
        position += numel
    return slices


def product(shape: Sequence[int]) -> int:
    """The number of elements of ``shape``; 1 for a 0-dim tensor."""
    result = 1
    for size in shape:
        result *= size
    return result
