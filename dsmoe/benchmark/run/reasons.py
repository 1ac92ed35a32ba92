"""Why a run failed, from how the launcher ended and what the processes said."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Sequence

from dsmoe.benchmark.run.marks import (
    FAILED,
    FINISHED,
    LOST_PEER,
    STARTED,
    WHERE,
    Mark,
    parse_mark,
)

#: In the words of a process that waits for another one (deepspeed/moe/pipeline/stage_engine.py).
WAITS = "waits for"
MOST_TOLD = 4
#: Begins each message of DeepSpeed's launcher; "HOST: " may stand before it.
LAUNCHER = "deepspeed: error: "
#: Begins what the keepers of the other launchers report (launchers/kept/by_keepers.py).
KEEPER = "dsmoe: error: "
_BY_LAUNCHER = re.compile(f"{LAUNCHER}|{KEEPER}")
# deepspeed/launcher/ends.py of overlay/ says which process failed first on its host.
_RANK_ENDED = re.compile(
    f"(?:{LAUNCHER}|{KEEPER})"
    r"rank (\d+) on \S+ \(process \d+\) (?:was killed by signal (\d+)|ended with .* (\d+)$)"
)


def by_launcher(line: str) -> str | None:
    """What the launcher or a keeper says in ``line``, or None where it is another's."""
    found = _BY_LAUNCHER.search(line)
    return line[found.end() :] if found else None


def reason(code: int, marks: Sequence[Mark], tail: Sequence[str], log: Path) -> str:
    """One line for the launcher's exit ``code`` (negative: a signal), never empty.

    In this order: what a process said of itself, or a process that was killed, whichever came
    first; a process that ended with a status and did not blame another one; what the launcher
    said of a host; the launcher's own death; a process that fell silent; the last error in the
    output.
    """
    see = f" (see {log})"
    first = _first_cause(marks, tail, see)
    if first:
        return first
    lost = {mark.rank for mark in marks if mark.kind == LOST_PEER}
    for rank, status in _ended(tail):
        if rank not in lost:
            return (
                f"training process {rank} ended with exit status {status}{_last_error(tail)}{see}"
            )
    launcher = [by_launcher(line) for line in tail if not _RANK_ENDED.search(line)]
    launcher = [said for said in launcher if said]
    if launcher:
        return f"{launcher[0]}{see}"
    if code < 0 or code > 128:
        return f"the launcher was killed by {_named(-code if code < 0 else code - 128)}{see}"
    silent = _silent(marks)
    if silent:
        ranks = ", ".join(map(str, silent))
        heard = [mark.reason for mark in marks if mark.kind == LOST_PEER]
        other = f"; another process reports: {heard[0]}" if heard else ""
        return (
            f"training process {ranks} ended without a message; it may have been killed{other}{see}"
        )
    return f"the training processes ended with exit status {code}{_last_error(tail)}{see}"


def hung(marks: Sequence[Mark]) -> str:
    """Where the processes of a pipeline were when nothing happened any more; empty without one.

    Those that say nothing come first, then those that do something, then those that wait.
    """
    where = {mark.rank: mark.reason for mark in marks if mark.kind == WHERE}
    if not where:
        return ""
    started = sorted({mark.rank for mark in marks if mark.kind == STARTED} - set(where))
    words = [f"process {rank} says nothing" for rank in started]
    told = sorted(where.items(), key=lambda item: (WAITS in item[1], item[0]))
    words += [f"process {rank} {text}" for rank, text in told]
    more = len(words) - MOST_TOLD
    return "; ".join(["", *words[:MOST_TOLD], *([f"and {more} more"] if more > 0 else [])])


def _first_cause(marks: Sequence[Mark], tail: Sequence[str], see: str) -> str | None:
    """The first process that failed by its own words, or that the launcher saw killed.

    A process that is killed often makes another one fail by an error of its own.
    """
    said = [mark for mark in marks if mark.kind == FAILED]
    killed = None
    for line in tail:
        mark = parse_mark(line)
        if mark is not None and mark.kind == FAILED:
            return mark.reason
        found = _RANK_ENDED.search(line)
        if found and found.group(2):
            killed = f"training process {found[1]} was killed by {_named(int(found[2]))}{see}"
            break
    in_tail = any(parse_mark(line) in said for line in tail) if said else False
    if said and (killed is None or not in_tail):
        return said[0].reason  # it came before the lines of the tail
    return killed


def _ended(tail: Sequence[str]) -> list[tuple[int, int]]:
    found = [_RANK_ENDED.search(line) for line in tail]
    return [(int(match[1]), int(match[3])) for match in found if match and match[3]]


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
    errors = [line.strip() for line in tail if re.match(r"\s*[\w.]*(Error|Exception)\b", line)]
    return f": {errors[-1][:300]}" if errors else ""
