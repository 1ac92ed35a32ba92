"""AdaFactor, whole and sharded over ZeRO-1/2's flat partitions. See docs/reference/adafactor.md."""

from __future__ import annotations

from .checkpoint import load_state_from_checkpoint, state_for_checkpoint
from .optimizer import MODES, Adafactor
from .shards import (
    BATCH_DIMS_ATTRIBUTE,
    Geometry,
    ShardSlice,
    UnitPart,
    geometry,
    keep_batch_dims,
    shard_slices,
    unit_parts,
)
from .tags import TAG_ATTRIBUTE, CutUnit, PartitionTag, tag_partition

__all__ = [
    "BATCH_DIMS_ATTRIBUTE",
    "MODES",
    "TAG_ATTRIBUTE",
    "Adafactor",
    "CutUnit",
    "Geometry",
    "PartitionTag",
    "ShardSlice",
    "UnitPart",
    "geometry",
    "keep_batch_dims",
    "load_state_from_checkpoint",
    "shard_slices",
    "state_for_checkpoint",
    "tag_partition",
    "unit_parts",
]
