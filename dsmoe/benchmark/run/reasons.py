"""Why a run failed, from how the launcher ended and what the processes said."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Sequence

from dsmoe.benchmark.run.marks import FAILED, FINISHED, LOST_PEER, STARTED, Mark

# The launcher's last words: "subprocess.CalledProcessError: Command '[...]' died with <...: 9>."
_SIGNAL = re.compile(r"CalledProcessError: .*died with <Signals\.\w+: (\d+)>")
_LAUNCHER = "deepspeed: error: "
_RANK = re.compile(r"--local_rank=(\d+)")
_STATUS = re.compile(r"CalledProcessError: .*returned non-zero exit status (\d+)")


def reason(code: int, marks: Sequence[Mark], tail: Sequence[str], log: Path) -> str:
    """One line for the launcher's exit ``code`` (negative: a signal), never empty.

    In this order: what a process said of itself; a process that the launcher saw killed; what the
    launcher said of a host; the launcher's own death; a process that fell silent; the last error
    in the output.
    """
    see = f" (see {log})"
    said = [mark for mark in marks if mark.kind == FAILED]
    if said:
        return said[0].reason
    killed = [line for line in tail if _SIGNAL.search(line)]
    if killed:
        found = _SIGNAL.search(killed[-1])
        rank = _RANK.search(killed[-1])
        assert found is not None
        which = f"training process {rank.group(1)}" if rank else "a training process"
        return f"{which} was killed by {_named(int(found.group(1)))}{see}"
    launcher = [line.split(_LAUNCHER, 1)[1] for line in tail if line.startswith(_LAUNCHER)]
    if launcher:
        return f"{launcher[0]}{see}"
    if code < 0 or code > 128:
        return f"the launcher was killed by {_named(-code if code < 0 else code - 128)}{see}"
    silent = _silent(marks)
    if silent:
        ranks = ", ".join(map(str, silent))
        lost = [mark.reason for mark in marks if mark.kind == LOST_PEER]
        heard = f"; another one: {lost[0]}" if lost else ""
        return f"training process {ranks} ended without a word, perhaps killed{heard}{see}"
    return f"the training processes ended with exit status {code}{_last_error(tail)}{see}"


def _named(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    memory = "; the system does this where its memory runs out" if name == "SIGKILL" else ""
    return f"signal {number} ({name}){memory}"


def _silent(marks: Sequence[Mark]) -> list[int]:
    started = {mark.rank for mark in marks if mark.kind == STARTED}
    spoke = {mark.rank for mark in marks if mark.kind in (FINISHED, LOST_PEER)}
    return sorted(started - spoke)


def _last_error(tail: Sequence[str]) -> str:
    errors = [
        line.strip()
        for line in tail
        if re.match(r"\s*[\w.]*(Error|Exception)\b", line) and "CalledProcessError" not in line
    ]
    return f": {errors[-1][:300]}" if errors else ""
