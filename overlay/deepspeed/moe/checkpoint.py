"""Experts in a checkpoint: one file an expert, whatever the expert parallel size or the layer.

DeepSpeed's own layer names its experts' parameters one by one. A layer that keeps the experts of
a process stacked in one parameter, [E_local, ...], is saved the same way: its slices go to the
files of the experts by their global numbers, and are stacked again on loading.
"""

from __future__ import annotations

from typing import Any

import torch

#: Part of the name of a parameter whose first dimension is the local experts.
STACKED = ".deepspeed_moe.experts.stacked."


def split_stacked_experts(
    state: dict[str, Any], by_expert: dict[str, dict[str, Any]], first_expert: int
) -> None:
    """Move the stacked parameters of ``state`` into ``by_expert``, a slice an expert.

    ``by_expert`` is keyed by the global expert number as text, as the engine has it. The slices
    are copies: a view would take the whole flat buffer of ZeRO into every file.
    """
    for key in [key for key in state if STACKED in key]:
        for local, value in enumerate(state.pop(key)):
            by_expert[str(first_expert + local)][key] = value.detach().clone()


def stack_expert(saved: dict[str, Any], state: dict[str, Any]) -> None:
    """Append the stacked parameters of one expert, ``saved``, to those in ``state``.

    Called for the local experts in order; other keys of ``saved`` are left for the caller.
    """
    for key in [key for key in saved if STACKED in key]:
        value = saved.pop(key).unsqueeze(0)
        state[key] = torch.cat([state[key], value]) if key in state else value
