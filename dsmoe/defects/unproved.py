"""Defects that have no proof for another release, with the reason: number -> (title, reason)."""

from __future__ import annotations

_OUTSIDE = "cannot be shown from outside: "
_TIME = _OUTSIDE + "it costs time and changes no value"

UNPROVED: dict[int, tuple[str, str]] = {
    2: (
        "Expert and dense slices never share one reduction",
        _OUTSIDE + "it depends on how buckets happen to be cut",
    ),
    3: (
        "The gate is trained in 16 bit under ZeRO",
        "no proof yet: the one that was tried gave the right value without the patch too",
    ),
    4: (
        "Each parameter group uses its own partition number",
        _OUTSIDE + "it depends on the order of groups inside ZeRO",
    ),
    9: (
        "The norm of fp16 without ZeRO counts the experts",
        "no proof yet: an old torch multiplies no fp16 matrices on the CPU, as experts need",
    ),
    10: (
        "load_checkpoint calls only methods that exist",
        _OUTSIDE + "the branch is reached by an inner state alone",
    ),
    11: ("MoE timers run only when asked for", _TIME),
    14: (
        "Experts without reduce_scatter or contiguous gradients",
        "open here too: stopping is right, so there is nothing to prove",
    ),
    15: ("The filled part of the reduce bucket is divided", _TIME),
    16: (
        "A run that a signal ended is no success",
        "no proof yet: the launcher's main program needs a GPU in most releases",
    ),
    19: (
        "Expert partitions are looked for by the checkpoint",
        "no proof yet: the proof of defect 50 covers the dense part",
    ),
    20: (
        "Top-1 gating without random selection keeps the capacity",
        "no proof yet; open here too",
    ),
    22: (
        "The address of the first host is one that answers",
        _OUTSIDE + "it needs several network interfaces, and root",
    ),
    23: (
        "Values and arguments reach remote shells quoted",
        "no proof yet: the command is made inside the launcher and sent through ssh",
    ),
    24: (
        "A failure of a remote host fails the run",
        _OUTSIDE + "it needs a second host, or namespaces and root",
    ),
    27: ("The throughput timer waits only when it reports", _TIME),
    30: (
        "A resumed run has the rate of its schedule",
        "no proof yet: right depends on which states are loaded",
    ),
    39: (
        "A skipped step is said, and NaN ends the run",
        "no proof yet: every release words a skipped step in its own way",
    ),
    40: (
        "The launcher names the process that failed first",
        "no proof yet: every release words the failure in its own way",
    ),
}

#: Releases that gave no verdict, or few, with the reason.
UNTRIED: dict[str, str] = {}
