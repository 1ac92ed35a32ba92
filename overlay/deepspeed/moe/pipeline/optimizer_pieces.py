"""What an optimizer keeps of each piece of a parameter, out of a partition and into another.

Tensors as long as the partition (momentum, Adam's moments) are cut like the masters. AdaFactor's
statistics are by unit (deepspeed/ops/adafactor/checkpoint.py) and only change their numbers: those
of an expert count from the first expert of all.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.ops.adafactor import Adafactor, load_state_from_checkpoint, state_for_checkpoint
from deepspeed.ops.adafactor.tags import TAG_ATTRIBUTE
from deepspeed.runtime.param_group_state import groups_to_save
from deepspeed.utils.checkpoint_io import state_value
from torch import Tensor

from .pieces import Whole, copy_into, pieces, wholes


def saved_pieces(engine: Any) -> dict[str, Any]:
    """What this process writes: ``pieces`` [(name, start, masters)], for each key of the
    optimizer's state ``states`` [(name, start, values)], ``scalars``, the options of the groups by
    name, and AdaFactor's ``factors``. Of equal copies only one process has any."""
    optimizer = engine.optimizer
    writes = [optimizer.writes(i) for i in range(len(optimizer.single_partition_of_fp32_groups))]
    result: dict[str, Any] = {"pieces": [], "states": {}, "scalars": {}, "factors": []}
    result["options"] = {
        group["name"]: {k: v for k, v in group.items() if k not in ("name", "moe")}
        for group in groups_to_save(optimizer.optimizer)
    }
    for piece in pieces(engine):
        if not writes[piece.group]:
            continue
        partition = optimizer.single_partition_of_fp32_groups[piece.group]
        cut = slice(piece.place, piece.place + piece.length)
        result["pieces"].append((piece.name, piece.start, _copy(partition[cut])))
        for key, value in _elementwise(optimizer, piece.group).items():
            states = result["states"].setdefault(key, [])
            states.append((piece.name, piece.start, _copy(value[cut])))
    for i in range(len(writes)):
        if writes[i]:
            result["scalars"].update(_scalars(optimizer, i))
            if _factored(optimizer, i) is not None:
                result["factors"].append(_factors_out(engine, i))
    return result


def restore(engine: Any, saved: list[dict[str, Any]], place: Any) -> None:
    """Fill the optimizer's state from what processes wrote (:func:`saved_pieces`).

    Raises RuntimeError where something is missing.
    """
    optimizer = engine.optimizer
    inner = optimizer.optimizer
    options: dict[str, Any] = {}
    for part in saved:
        options.update(part["options"])
    for group in inner.param_groups:
        found = options.get(group["name"], options.get("dense", {}))
        group.update(found)
    keys = list(dict.fromkeys(key for part in saved for key in part["states"]))
    scalars: dict[str, Any] = {}
    for part in saved:
        scalars.update(part["scalars"])
    for i, partition in enumerate(optimizer.single_partition_of_fp32_groups):
        if _factored(optimizer, i) is not None:
            _factors_in(engine, i, saved)
            continue
        state = inner.state[partition]
        for key, value in scalars.items():
            state[key] = state_value(value, partition, inner.param_groups[i])
        for key in keys:
            state[key] = torch.zeros_like(partition, requires_grad=False)
    for piece in pieces(engine):
        partition = optimizer.single_partition_of_fp32_groups[piece.group]
        if _factored(optimizer, piece.group) is not None:
            continue
        for key in keys:
            target = inner.state[partition][key][piece.place : piece.place + piece.length]
            left = piece.length
            for part in saved:
                for name, start, values in part["states"].get(key, []):
                    if name == piece.name:
                        left -= copy_into(target, piece, start, values)
            if left:
                raise RuntimeError(
                    f"{place} lacks elements of {key} of {piece.name}: copy the whole folder"
                )


def _elementwise(optimizer: Any, i: int) -> dict[str, Tensor]:
    """The state's tensors that are as long as the partition."""
    if _factored(optimizer, i) is not None:
        return {}
    partition = optimizer.single_partition_of_fp32_groups[i]
    state = optimizer.optimizer.state.get(partition, {})
    size = partition.numel()
    return {k: v for k, v in state.items() if torch.is_tensor(v) and v.dim() and v.numel() == size}


def _scalars(optimizer: Any, i: int) -> dict[str, Any]:
    if _factored(optimizer, i) is not None:
        return {}
    long = _elementwise(optimizer, i)
    state = optimizer.optimizer.state.get(optimizer.single_partition_of_fp32_groups[i], {})
    return {key: value for key, value in state.items() if key not in long}


def _factored(optimizer: Any, i: int) -> Any:
    """The tag of a partition that AdaFactor updates parameter by parameter, or None."""
    inner = optimizer.optimizer
    if not isinstance(inner, Adafactor) or inner.param_groups[i]["mode"] == "artifact":
        return None
    return getattr(optimizer.single_partition_of_fp32_groups[i], TAG_ATTRIBUTE, None)


def _factors_out(engine: Any, i: int) -> dict[str, Any]:
    """AdaFactor's state of group ``i``, by parameter, in the numbers of the whole parameter."""
    optimizer, here = engine.optimizer, wholes(engine, i)
    partition = optimizer.single_partition_of_fp32_groups[i]
    found = state_for_checkpoint(optimizer.optimizer.state[partition], _factored(optimizer, i))
    params = {here[n].name: _moved(entry, here[n], 1) for n, entry in found["params"].items()}
    return {"step": found["step"], "params": params}


def _factors_in(engine: Any, i: int, saved: list[dict[str, Any]]) -> None:
    optimizer, here = engine.optimizer, wholes(engine, i)
    partition = optimizer.single_partition_of_fp32_groups[i]
    numbers = {whole.name: n for n, whole in enumerate(here)}
    states = []
    for part in saved:
        for factors in part["factors"]:
            own = {
                numbers[name]: _moved(entry, here[numbers[name]], -1)
                for name, entry in factors["params"].items()
                if name in numbers
            }
            states.append({"step": factors["step"], "params": own})
    first_moment = optimizer.optimizer.param_groups[i]["beta1"] is not None
    tag = _factored(optimizer, i)
    optimizer.optimizer.state[partition] = load_state_from_checkpoint(
        states, tag, partition, first_moment
    )


def _moved(entry: dict[str, Any], whole: Whole, direction: int) -> dict[str, Any]:
    """``entry`` of the share here in the numbers of the whole parameter (1), or back (-1)."""
    units = entry["units"] if direction == 1 else entry["units"] // whole.copies
    first = direction * whole.rank * units
    offset = direction * whole.rank * whole.param.numel()
    return {
        **entry,
        "shape": whole.shape if direction == 1 else list(whole.param.shape),
        "units": units * whole.copies if direction == 1 else units,
        "first_unit": entry["first_unit"] + first,
        "offset": entry["offset"] + offset,
    }


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True)
