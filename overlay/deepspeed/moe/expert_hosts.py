"""The tokens' exchange in two steps, where an expert parallel group spans hosts.

With H hosts of N processes, rank h N + n of the group is process n of host h. In one step every
process sends (H - 1) N messages to other hosts. In two it first hands each process n of its own
host all that goes to the processes n of any host, and then exchanges with the processes of its own
place on the other hosts: H - 1 messages, each N times as large. Tokens are moved and nothing else,
so results are equal to the bit, and a host sends as many bytes. gshard/all_to_all.py and
kernels/expert_messages.py do it.
"""

from __future__ import annotations

import weakref
from typing import Any

from deepspeed.moe.kernels.policy import HAS_OPERATORS
from deepspeed.runtime.zero.host_levels import Levels, levels_of
from deepspeed.utils import groups

# The group and how it lies on hosts; another group is in use once groups are made anew.
_known: tuple[Any, Levels] | None = None


def exchange_by_hosts(wanted: bool) -> None:
    """Choose how tokens are exchanged in this process's expert parallel group.

    All processes of the run call it together, once the groups exist. Without it, and where not
    ``wanted``, the exchange goes in one step, which was faster with gloo; with NCCL neither was
    measured between hosts (docs/guide/beyond-one-host.md). In two steps it goes where the group has
    equally many processes on each host, at least two, next to one another (host_levels.py), and
    torch has custom operators (2.4). DeepSpeed's own MoE layer always takes one step.
    """
    global _known
    _known = None
    if not (wanted and HAS_OPERATORS) or groups.get_expert_parallel_world_size() == 1:
        return
    group = groups.get_expert_parallel_group()
    [levels] = levels_of([group])
    if levels is not None and levels.inside is not None:
        _known = weakref.ref(group), levels


def levels_for(group: Any) -> Levels | None:
    """How ``group`` lies on hosts where its tokens are exchanged in two steps; None: in one."""
    if _known is None or _known[0]() is not group:
        return None
    return _known[1]


def near_group(group: Any) -> Any:
    """Those of ``group`` that this process exchanges tokens with first: all, or its own host's."""
    levels = levels_for(group)
    return group if levels is None else levels.inside
