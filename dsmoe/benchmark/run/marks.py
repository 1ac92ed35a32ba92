"""What a training process says to the command: lines of its output that nothing else looks like.

The output reaches the command also where the disk is full and where the processes run on
other machines; a file would not.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass

SIGN = "[dsmoe-rank] "
# A pipe takes up to 4096 bytes (PIPE_BUF) at once, so that two processes' lines stay apart.
REASON_LENGTH = 800

STARTED = "started"
FINISHED = "finished"
FAILED = "failed"
# The process failed because another one was gone: never the reason of a run where another is.
LOST_PEER = "lost-peer"
# What a process of a pipeline is doing when the time of an iteration is nearly over.
WHERE = "where"
# Something goes another way than it could; the run goes on.
NOTE = "note"


@dataclass(frozen=True)
class Mark:
    """``kind`` is one of the names above; ``reason`` one line, empty unless it failed or notes."""

    rank: int
    kind: str
    pid: int
    reason: str = ""

    def line(self) -> str:
        return SIGN + json.dumps(asdict(self))


def parse_mark(text: str) -> Mark | None:
    """The mark in a line of output, or None; the launcher may have put a host's name before it."""
    _, sign, rest = text.partition(SIGN)
    if not sign:
        return None
    try:
        return Mark(**json.loads(rest))
    except (ValueError, TypeError):
        return None


def say(rank: int, kind: str, reason: str = "") -> None:
    """Print the mark of this process; an output that is closed is no error."""
    line = " ".join(reason.split())[:REASON_LENGTH]
    # In one write, and after a line end: another process may have left half a line.
    data = ("\n" + Mark(rank, kind, os.getpid(), line).line() + "\n").encode()
    sys.stdout.flush()
    try:
        os.write(2, data)
    except OSError:
        return
