"""Body of stacked-experts-in-checkpoints.patch: one file an expert in every checkpoint.

DeepSpeed's own layer names the parameters of its experts one by one. A layer that stacks the
experts of a process in one parameter, [E_local, ...], is saved the same way: each slice goes to the
file of its expert, by the expert's global number, and loading stacks the slices again. The files do
not depend on the expert parallel size.
"""

from __future__ import annotations

from typing import Any

import torch

#: Part of the name of each parameter whose first dimension counts local experts.
STACKED = ".deepspeed_moe.experts.stacked."


def split_stacked_experts(
    state: dict[str, Any], by_expert: dict[str, dict[str, Any]], first_expert: int
) -> None:
    """Move the stacked parameters of ``state`` into ``by_expert``, a slice an expert.

    The keys of ``by_expert`` are global expert numbers as text, as the engine's. The slices are
    copies: a view would write ZeRO's whole flat buffer to every file.
    """
    for key in [key for key in state if STACKED in key]:
        for local, value in enumerate(state.pop(key)):
            by_expert[str(first_expert + local)][key] = value.detach().clone()


def stack_expert(saved: dict[str, Any], state: dict[str, Any]) -> None:
    """Append the stacked parameters of one expert, ``saved``, to those in ``state``.

    Call it for the local experts in order. Other keys of ``saved`` stay there.
    """
    for key in [key for key in saved if STACKED in key]:
        value = saved.pop(key).unsqueeze(0)
        state[key] = torch.cat([state[key], value]) if key in state else value
