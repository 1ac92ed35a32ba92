"""Which devices the slots of a host are."""

from __future__ import annotations

import os
import re
from typing import Mapping, Sequence

from .errors import LaunchError
from .host_grammar import MAX_SLOTS

VARIABLE = "CUDA_VISIBLE_DEVICES"
# How many GPUs this machine has, from whoever starts the launcher and has counted them.
COUNTED = "DSMOE_DEVICES"


def count() -> int:
    """GPUs of this machine: ``DSMOE_DEVICES``, else as torch sees them, which takes seconds to
    import. Raises LaunchError where the variable is no number, or above MAX_SLOTS."""
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
    """``CUDA_VISIBLE_DEVICES`` of a host's processes: its slots, numbered among those it shows.

    Unset, slot i is device i. Set, slot i is its entry i; CUDA ignores all from the first ``-1``
    on, and where nothing is left the variable stays as it is: the user hid the devices. Raises
    LaunchError for a slot that has no entry.
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
