"""Hosts given by hand: ``--hosts a,n[1-8]:4`` and ``--hosts-file`` (plain, OpenMPI or MPICH form).

OpenMPI: ``NAME slots=N [max_slots=M]``; MPICH (Hydra): ``NAME:N``. Comments, blank lines, CRLF and
a byte-order mark are fine here: this input is for people, and the output is written anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from dsmoe.common.errors import HostProblem
from dsmoe.hosts.brackets import MAX_NAMES, expand_names
from dsmoe.hosts.host import Candidate, check_name, check_slots, shown
from dsmoe.hosts.hostfile import read_limited, text_lines

_SEPARATOR = re.compile(r"[\[\],]")
_BRACKETS = re.compile(r"\[[0-9]+(?:[-,][0-9]+)*\]")


def parse_hosts_option(text: str) -> list[Candidate]:
    """The hosts of ``--hosts``: comma-separated ``NAME`` or ``NAME:N``, with Slurm's brackets.

    ``n[01-03]:4`` is ``n01:4,n02:4,n03:4``. Raises HostProblem for an empty item and for a name or
    count that cannot be used.
    """
    candidates = []
    for number, item in enumerate(_items(text), start=1):
        where = f"--hosts, item {number}"
        if not item.strip():
            raise HostProblem(f"{where}: found nothing, expected a host, as in --hosts a,b:4")
        for one in _expanded(item.strip(), where):
            candidates.append(_name_and_count(one, where))
        if len(candidates) > MAX_NAMES:
            raise HostProblem(f"--hosts: means over {MAX_NAMES} hosts; give --hosts-file")
    _refuse_repeats(candidates)
    return candidates


def _items(text: str) -> list[str]:
    """``text`` split at the commas that are in no bracket."""
    items, begin, inside = [], 0, False
    for found in _SEPARATOR.finditer(text):
        if found.group() != ",":
            inside = found.group() == "["
        elif not inside:
            items.append(text[begin : found.start()])
            begin = found.end()
    return [*items, text[begin:]]


def _expanded(item: str, where: str) -> list[str]:
    # "[fd00::1]:4" has brackets too, and is for check_name to refuse.
    if not _BRACKETS.search(item):
        return [item]
    try:
        return expand_names(item)
    except HostProblem as error:
        raise HostProblem(f"{where}: {error}") from None


def read_hosts_file(path: Path) -> list[Candidate]:
    """The hosts of a hand-made or MPI host file, in its order.

    Raises HostProblem, with the line number where the file can be read.
    """
    try:
        data = read_limited(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise HostProblem(
            f"--hosts-file {path}: cannot be read: {reason}; expected a file of hosts, one a line"
        ) from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise HostProblem(f"{path}:1: found UTF-16 text, expected UTF-8")
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    candidates = []
    for number, line in enumerate(text_lines(data, str(path)), start=1):
        words = line.split("#", 1)[0].split()
        if words:
            candidates.append(_line(words, line.strip(), f"{path}:{number}"))
    if not candidates:
        raise HostProblem(f"{path}: found no host, expected one a line")
    _refuse_repeats(candidates)
    return candidates


def _line(words: list[str], line: str, where: str) -> Candidate:
    candidate = _name_and_count(words[0], where)
    settings: dict[str, int] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        key = "max_slots" if key == "max-slots" else key
        if not equals or key not in ("slots", "max_slots"):
            raise HostProblem(
                f"{where}: found {shown(word)} in {shown(line)}, "
                "expected 'NAME', 'NAME:N' or 'NAME slots=N'"
            )
        if key in settings or (key == "slots" and candidate.slots is not None):
            raise HostProblem(f"{where}: found two slot counts in {shown(line)}, expected one")
        settings[key] = check_slots(value, where)
    slots = settings.get("slots", candidate.slots)
    if slots is not None and settings.get("max_slots", slots) < slots:
        raise HostProblem(f"{where}: found max_slots below slots in {shown(line)}")
    return Candidate(candidate.name, slots, where)


def _name_and_count(text: str, where: str) -> Candidate:
    if text.count(":") == 1 and "[" not in text:
        name, _, count = text.partition(":")
        return Candidate(check_name(name, where), check_slots(count, where), where)
    return Candidate(check_name(text, where), None, where)


def _refuse_repeats(candidates: list[Candidate]) -> None:
    # OpenMPI adds up repeated lines, MPICH does not, and the launcher refuses them: so do we.
    seen: dict[str, Candidate] = {}
    for candidate in candidates:
        first = seen.setdefault(candidate.name.lower(), candidate)
        if first is not candidate:
            raise HostProblem(
                f"{candidate.where}: found the host {candidate.name} again, first at "
                f"{first.where}; expected every host once"
            )
