"""Body of adafactor.patch: what ZeRO-1/2 (runtime/zero/stage2.py) calls of AdaFactor.

Each function does nothing for another optimizer, so that stage2.py needs one line for each call.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from .checkpoint import load_state_from_checkpoint, state_for_checkpoint
from .optimizer import Adafactor
from .tags import TAG_ATTRIBUTE, tag_partition

#: The key of a partition's sharded state in a ZeRO checkpoint.
STATE_KEY = "adafactor"


def tag_partitions(zero: Any) -> None:
    """Tell AdaFactor what each flat fp32 partition of the ZeRO optimizer ``zero`` holds.

    A parameter's id is its place in the group as the user gave it, which does not depend on the
    number of processes, even where ``round_robin_gradients`` reorders the parameters.
    """
    if not isinstance(zero.optimizer, Adafactor):
        return
    placed, reordered = _round_robin(zero)
    for i, partition in enumerate(zero.single_partition_of_fp32_groups):
        given = {placed[i][original]: original for original in range(len(reordered[i]))}
        group = zero.real_dp_process_group[i]
        tag_partition(
            partition,
            reordered[i],
            dist.get_rank(group=group),
            dist.get_world_size(group=group),
            group,
            [given[place] for place in range(len(given))],
        )
    zero.optimizer.init_state()


def _round_robin(zero: Any) -> tuple[Any, Any]:
    """For each group the new places of its parameters, and the parameters in that order."""
    if hasattr(zero, "round_robin_bit16_groups"):
        return zero.round_robin_bit16_indices, zero.round_robin_bit16_groups
    return zero.round_robin_fp6_indices, zero.round_robin_fp16_groups  # release 0.5.4's names


def sharded_state(zero: Any, i: int) -> dict[str, Any] | None:
    """The saved state of group ``i``; None where ZeRO's own way of saving is right."""
    partition = _sharded_partition(zero, i)
    if partition is None:
        return None
    tag = getattr(partition, TAG_ATTRIBUTE)
    return {STATE_KEY: state_for_checkpoint(zero.optimizer.state[partition], tag)}


def restore_sharded_state(zero: Any, i: int, saved: list[dict[str, Any]]) -> bool:
    """Restore the state of group ``i`` from those of all its ranks; False if none is sharded.

    Raises RuntimeError where the checkpoint was saved by another optimizer or mode.
    """
    partition = _sharded_partition(zero, i)
    found = all(STATE_KEY in state for state in saved)
    if partition is None and not found:
        return False
    if partition is None or not found:
        raise RuntimeError(
            f"the checkpoint's optimizer state of group {i} has {sorted(saved[0])}, expected "
            f"{'[' + repr(STATE_KEY) + ']' if partition is not None else 'that of this optimizer'}"
            ": resume with the optimizer and mode that saved it, or pass "
            "load_optimizer_states=False"
        )
    tag = getattr(partition, TAG_ATTRIBUTE)
    first_moment = zero.optimizer.param_groups[i]["beta1"] is not None
    states = [state[STATE_KEY] for state in saved]
    state = load_state_from_checkpoint(states, tag, partition, first_moment)
    zero.optimizer.state[partition] = state
    return True


def _sharded_partition(zero: Any, i: int) -> Any:
    """The tagged partition of group ``i`` if AdaFactor updates it parameter by parameter."""
    if not isinstance(zero.optimizer, Adafactor):
        return None
    group = zero.optimizer.param_groups[i]
    return None if group["mode"] == "artifact" else group["params"][0]
