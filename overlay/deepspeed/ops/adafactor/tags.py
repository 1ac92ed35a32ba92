"""The description of a flat partition that ZeRO gives to AdaFactor, and the units it cuts."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, NamedTuple, Sequence

from .shards import BATCH_DIMS_ATTRIBUTE, geometry, product, shard_slices

#: The attribute of a flat partition that holds its :class:`PartitionTag`.
TAG_ATTRIBUTE = "adafactor_tag"


class CutUnit(NamedTuple):
    """A unit that lies in more than one partition, and its place in the packed messages.

    Its part of the first message, from ``offset`` on, is R row sums (none when R is 1), C column
    sums and the squared norm of the parameter; of the second, one number at ``index``.
    """

    param_id: int
    unit: int
    rows: int
    cols: int
    offset: int
    index: int

    @property
    def row_count(self) -> int:
        return self.rows if self.rows > 1 else 0

    @property
    def numel(self) -> int:
        return self.row_count + self.cols + 1


class PartitionTag:
    """What AdaFactor needs to know of a flat partition; equal on every rank except for ``rank``.

    ``slices`` are this rank's; ``cuts`` are all the cut units of the group, in flattened order,
    so that every rank uses the same message layout and knows whether there are any messages.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        partition_size: int,
        rank: int,
        world_size: int,
        process_group: Any = None,
        batch_dims: Sequence[int | None] | None = None,
        param_ids: Sequence[int] | None = None,
    ) -> None:
        total = sum(product(shape) for shape in shapes)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, expected 0 to {world_size - 1}")
        if total > partition_size * world_size:
            raise ValueError(
                f"{world_size} partitions of {partition_size} elements cannot hold the "
                f"{total} elements of the group's parameters"
            )
        ids = list(range(len(shapes))) if param_ids is None else list(param_ids)
        if len(set(ids)) != len(shapes):
            raise ValueError(f"expected {len(shapes)} different param_ids, found {ids}")
        self.partition_size = partition_size
        self.rank = rank
        self.world_size = world_size
        self.process_group = process_group
        self.slices = shard_slices(shapes, partition_size, rank, batch_dims, ids)
        self.cuts = _cut_units(shapes, partition_size, world_size, batch_dims, ids)
        self.message_numel = sum(cut.numel for cut in self.cuts)


def _cut_units(
    shapes: Sequence[Sequence[int]],
    partition_size: int,
    world_size: int,
    batch_dims: Sequence[int | None] | None,
    param_ids: Sequence[int],
) -> list[CutUnit]:
    # Parameters without elements have no place in the flat order.
    kept = [index for index, shape in enumerate(shapes) if product(shape)]
    starts = [0]
    for index in kept:
        starts.append(starts[-1] + product(shapes[index]))
    cuts: list[CutUnit] = []
    offset = 0
    for boundary in range(partition_size, partition_size * world_size, max(1, partition_size)):
        if boundary >= starts[-1]:
            break
        place = bisect_right(starts, boundary) - 1
        index = kept[place]
        form = geometry(shapes[index], None if batch_dims is None else batch_dims[index])
        unit, inside = divmod(boundary - starts[place], form.unit_numel)
        name = (param_ids[index], unit)
        if inside == 0 or (cuts and (cuts[-1].param_id, cuts[-1].unit) == name):
            continue
        cuts.append(CutUnit(name[0], unit, form.rows, form.cols, offset, len(cuts)))
        offset += cuts[-1].numel
    return cuts


def tag_partition(
    partition: Any,
    params: Sequence[Any],
    rank: int,
    world_size: int,
    process_group: Any = None,
    param_ids: Sequence[int] | None = None,
) -> PartitionTag:
    """Attach a tag with its contents to the flat tensor ``partition``, and return the tag.

    ``params`` are the group's model parameters in flattened order (with round-robin order: after
    reordering); ``rank``, ``world_size`` and ``process_group`` are those over which the group is
    partitioned, ``None`` being the default group. Give ``param_ids`` that do not depend on the
    number of processes when checkpoints must load at another one.
    """
    tag = PartitionTag(
        [tuple(param.shape) for param in params],
        partition.numel(),
        rank,
        world_size,
        process_group,
        [getattr(param, BATCH_DIMS_ATTRIBUTE, None) for param in params],
        param_ids,
    )
    setattr(partition, TAG_ATTRIBUTE, tag)
    return tag
