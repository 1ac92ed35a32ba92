"""Saving a tagged partition's state, and loading it at any number of processes.

Pure functions of state and tag. ZeRO saves one file a rank and, when loading, reads the files of
all ranks of the group; :func:`load_state_from_checkpoint` takes the contents of all. Parameters are
matched by ``param_id``, which must not depend on the number of processes.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from .shards import ShardSlice
from .state import State, new_state
from .tags import PartitionTag


def state_for_checkpoint(state: State, tag: PartitionTag) -> dict[str, Any]:
    """What this rank must save: ``step``, and for each param_id its shape, the place of this
    rank's slice, the statistics of its units, and its slice of the first moment (1-D).

    Padding is omitted. Tensors are detached copies on the CPU. Raises ValueError for an empty
    state.
    """
    if "factors" not in state:
        raise ValueError(f"state has {sorted(state)}, expected factors: call init_state() first")
    params = {}
    for piece in tag.slices:
        entry = {key: _copy(value) for key, value in state["factors"][piece.param_id].items()}
        entry["shape"] = list(piece.shape)
        entry["units"] = piece.geometry.units
        entry["offset"] = piece.offset_in_param
        if "exp_avg" in state:
            low = piece.offset_in_partition
            entry["exp_avg"] = _copy(state["exp_avg"][low : low + piece.length])
        params[piece.param_id] = entry
    return {"step": state["step"], "params": params}


def load_state_from_checkpoint(
    saved: Sequence[dict[str, Any]], tag: PartitionTag, partition: Tensor, first_moment: bool
) -> State:
    """The state of ``partition`` (tagged ``tag``) from the saved states of all ranks of its group.

    ``saved`` may come from any number of ranks, in any order. ``first_moment``: beta1 is set,
    as it must have been when the checkpoint was saved. Raises ValueError if the ranks disagree on
    the step, or if no rank holds a unit or element.
    """
    steps = {part["step"] for part in saved}
    if len(steps) != 1:
        raise ValueError(f"saved states are of steps {sorted(steps)}, expected one step for all")
    state = new_state(partition, tag, first_moment)
    state["step"] = steps.pop()
    for piece in tag.slices:
        entries = [part["params"][piece.param_id] for part in saved if _holds(part, piece)]
        _fill_factors(state["factors"][piece.param_id], piece, entries)
        if first_moment:
            low = piece.offset_in_partition
            _fill_moment(state["exp_avg"][low : low + piece.length], piece, entries)
    return state


def _holds(part: dict[str, Any], piece: ShardSlice) -> bool:
    entry = part["params"].get(piece.param_id)
    if entry is None:
        return False
    found = (tuple(entry["shape"]), entry["units"])
    if found != (piece.shape, piece.geometry.units):
        raise ValueError(
            f"parameter {piece.param_id} was saved with shape {found[0]} in {found[1]} units, "
            f"expected shape {piece.shape} in {piece.geometry.units}"
        )
    return True


def _fill_factors(factors: State, piece: ShardSlice, entries: list[dict[str, Any]]) -> None:
    form = piece.geometry
    first, last = piece.unit_range
    missing = set(range(first, last))
    for entry in entries:
        begin = max(first, entry["first_unit"])
        end = min(last, entry["first_unit"] + entry["col"].numel() // form.cols)
        if begin >= end:
            continue
        missing.difference_update(range(begin, end))
        for key, width in (("row", form.rows), ("col", form.cols)):
            if key in factors:
                source = entry[key].view(-1, width)
                rows = source[begin - entry["first_unit"] : end - entry["first_unit"]]
                factors[key].view(-1, width)[begin - first : end - first].copy_(rows)
    if missing:
        raise ValueError(
            f"no saved state holds unit {min(missing)} of parameter {piece.param_id}: "
            "expected the states of all ranks of the group"
        )


def _fill_moment(target: Tensor, piece: ShardSlice, entries: list[dict[str, Any]]) -> None:
    begin, end = piece.offset_in_param, piece.offset_in_param + piece.length
    filled = 0
    for entry in entries:
        if "exp_avg" not in entry:
            break
        low = max(begin, entry["offset"])
        high = min(end, entry["offset"] + entry["exp_avg"].numel())
        if low < high:
            source = entry["exp_avg"][low - entry["offset"] : high - entry["offset"]]
            target[low - begin : high - begin].copy_(source)
            filled += high - low
    if filled != piece.length:
        raise ValueError(
            f"saved states hold {filled} elements of the first moment of parameter "
            f"{piece.param_id} that belong here, expected {piece.length}"
        )


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value
