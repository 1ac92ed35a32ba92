"""The devices that belong to the slots of a host."""

from __future__ import annotations

import os
import re
from typing import Mapping, Sequence

from .errors import LaunchError
from .host_grammar import MAX_SLOTS

VARIABLE = "CUDA_VISIBLE_DEVICES"
# The number of GPUs of this machine, set by a program that has counted them already.
COUNTED = "DSMOE_DEVICES"


def count() -> int:
    """GPUs of this machine: ``DSMOE_DEVICES``, else counted by torch, whose import takes seconds.

    Raises LaunchError if the variable is not a number up to MAX_SLOTS.
    """
    said = os.environ.get(COUNTED)
    if said is None:
        import torch

        return torch.cuda.device_count()
    if not re.fullmatch("[0-9]{1,9}", said) or int(said) > MAX_SLOTS:
        raise LaunchError(
            f"{COUNTED}={said[:60]!a}; expected a number of GPUs up to {MAX_SLOTS}, or unset it"
        )
    return int(said)


def visible(slots: Sequence[int], environ: Mapping[str, str]) -> str:
    """``CUDA_VISIBLE_DEVICES`` of a host's processes, from its slots and the variable there.

    If the variable is not set, slot i is device i. If it is set, slot i is its entry i; CUDA
    ignores all entries from the first ``-1`` on. If no entry remains, the user hid the devices, and
    the variable stays as it is. Raises LaunchError for a slot that has no entry.
    """
    if VARIABLE not in environ:
        return ",".join(map(str, slots))
    shown: list[str] = []
    for entry in environ[VARIABLE].split(","):
        entry = entry.strip()
        if entry in ("", "-1", "NoDevFiles"):
            break
        shown.append(entry)
    if not shown:
        return environ[VARIABLE]
    if max(slots) >= len(shown):
        raise LaunchError(
            f"{VARIABLE}={environ[VARIABLE]} shows {len(shown)} device(s), slot {max(slots)} is "
            "not among them (slots count from 0); unset it, or use fewer slots"
        )
    return ",".join(shown[slot] for slot in slots)
