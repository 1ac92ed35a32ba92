"""AdaFactor's statistics of experts, from one expert parallel size to another.

A file holds for each parameter the statistics of some of its units (matrices), and AdaFactor finds
those that it needs by the parameter's number and shape and the unit's number
(deepspeed/ops/adafactor/checkpoint.py). Here these are rewritten to what they are for the process
that loads: no value changes.
"""

from __future__ import annotations

from typing import Any

from deepspeed.moe.checkpoint import STACKED
from deepspeed.ops.adafactor.shards import product
from deepspeed.ops.adafactor.zero import STATE_KEY


def for_these_experts(
    zero: Any, i: int, layout: Any, states: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """``states`` of group ``i``, by ``layout.ranks``, as if saved at this expert parallel size.

    States that are not AdaFactor's come back as they are. Raises RuntimeError where a statistic
    is over several experts.
    """
    if not all(STATE_KEY in state for state in states):
        return states
    here = _places_here(zero, i, layout)
    converted = []
    for there, ranks in layout.sequences.items():
        own = [states[layout.ranks.index(r)][STATE_KEY] for r in ranks]
        places = layout.places(layout.names_there(there), there)
        names = dict(zip(_numbers(own), dict.fromkeys(name for _, numel, name in places if numel)))
        first: dict[str, Any] = {}
        for key, _, name in places:
            first.setdefault(name, key)
        for state in own:
            params: dict[int, Any] = {}
            for number, entry in state["params"].items():
                *front, expert = first[names[number]]
                for target, start, experts, shape in here.get(tuple(front), []):
                    moved = _moved(entry, names[number], expert - start, experts, shape)
                    if moved is not None:
                        params[target] = moved
            converted.append({STATE_KEY: {"step": state["step"], "params": params}})
    return converted


def _numbers(states: list[dict[str, Any]]) -> list[int]:
    """The parameters' numbers in the flat order of an expert parallel rank's files."""
    return list(dict.fromkeys(number for state in states for number in state["params"]))


def _reordered(zero: Any, i: int) -> dict[int, int]:
    """The place in the flat order of each parameter of the group, by its place as given."""
    bit16 = hasattr(zero, "round_robin_bit16_indices")  # release 0.5.4's name is the other
    indices = (zero.round_robin_bit16_indices if bit16 else zero.round_robin_fp6_indices)[i]
    return {given: indices[given] for given in range(len(indices))}


def _places_here(zero: Any, i: int, layout: Any) -> dict[Any, list[tuple[Any, ...]]]:
    """(name, shape of an expert): this process's parameters of it, each with its number, the
    first expert in it, how many it holds, and its shape."""
    flat_order = list(layout.names_here)
    numbers = {flat_order[place]: given for given, place in _reordered(zero, i).items()}
    result: dict[Any, list[tuple[Any, ...]]] = {}
    count: dict[str, int] = {}
    places = layout.places(layout.names_here, layout.rank_here)
    for _, _, name in places:
        count[name] = count.get(name, 0) + 1
    seen = set()
    for key, _, name in places:
        if name not in seen:
            seen.add(name)
            shape = list(layout.names_here[name])
            entry = (numbers[name], key[-1], count[name], shape)
            result.setdefault(tuple(key[:-1]), []).append(entry)
    return result


def _moved(
    entry: dict[str, Any], name: str, apart: int, experts: int, shape: list[int]
) -> dict[str, Any] | None:
    """``entry``, which starts ``apart`` experts behind the parameter here; None if it is no part.

    ``experts`` and ``shape`` are of the parameter here.
    """
    there = entry["shape"][0] if STACKED in name else 1
    if entry["units"] % there:
        raise RuntimeError(
            f"the AdaFactor state of {name} has {entry['units']} statistics for {there} experts,"
            " expected some for each: resume with the expert parallel size that saved it, or pass"
            " load_optimizer_states=False"
        )
    if apart >= experts or apart + there <= 0:
        return None
    units, numel = entry["units"] // there, product(entry["shape"]) // there
    return {
        **entry,
        "shape": list(shape),
        "units": units * experts,
        "first_unit": entry["first_unit"] + apart * units,
        "offset": entry["offset"] + apart * numel,
    }
