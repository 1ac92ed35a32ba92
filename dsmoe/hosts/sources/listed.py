"""Hosts given by hand: ``--hosts a,b:4`` and ``--hosts-file`` (plain, OpenMPI or MPICH form).

OpenMPI: ``NAME slots=N [max_slots=M]``; MPICH (Hydra): ``NAME:N``. Comments, blank lines, CRLF and
a byte-order mark are fine here: this input is for people, and the output is written anew.
"""

from __future__ import annotations

from pathlib import Path

from dsmoe.common.errors import HostProblem, UsageError
from dsmoe.hosts.host import Candidate, check_name, check_slots, shown
from dsmoe.hosts.hostfile import MAX_BYTES, text_lines


def parse_hosts_option(text: str) -> list[Candidate]:
    """The hosts of ``--hosts``: comma-separated ``NAME`` or ``NAME:N``.

    Raises UsageError for an empty item, HostProblem for a name or count that cannot be used.
    """
    candidates = []
    for number, item in enumerate(text.split(","), start=1):
        where = f"--hosts, item {number}"
        if not item.strip():
            raise UsageError(f"{where}: found nothing, expected a host, as in --hosts a,b:4")
        candidates.append(_name_and_count(item.strip(), where))
    _refuse_repeats(candidates)
    return candidates


def read_hosts_file(path: Path) -> list[Candidate]:
    """The hosts of a hand-made or MPI host file, in its order.

    Raises UsageError if the file cannot be read, HostProblem with the line number otherwise.
    """
    if not path.is_file():
        raise UsageError(f"--hosts-file {path}: found no such plain file")
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--hosts-file {path}: cannot be read: {error.strerror}") from None
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
