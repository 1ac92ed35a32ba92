"""Two names of one machine, found by their addresses before the launcher starts twice on it."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from typing import Sequence

from dsmoe.common.errors import HostProblem
from dsmoe.hosts.host import Candidate

RESOLVE_SECONDS = 10.0
_THIS_MACHINE = "this machine"


def refuse_same_machine(
    candidates: Sequence[Candidate], seconds: float = RESOLVE_SECONDS
) -> list[str]:
    """Raise HostProblem if two candidates share an address; return warnings.

    Names that do not resolve within ``seconds`` in all are compared by name alone: they may be
    aliases of ~/.ssh/config. Loopback names count as this machine, and so do its own addresses;
    addresses 127.0.0.2 and up count as hosts of their own.
    """
    marks = _resolve_all([candidate.name for candidate in candidates], seconds)
    owner: dict[str, Candidate] = {}
    for candidate in candidates:
        for mark in marks[candidate.name]:
            first = owner.setdefault(mark, candidate)
            if first is not candidate:
                raise HostProblem(
                    f"{candidate.where}: {candidate.name} and {first.name} ({first.where}) are one "
                    f"machine ({mark}), expected every host once"
                )
    warnings = []
    unknown = [name for name, found in marks.items() if not found]
    if unknown:
        warnings.append(
            f"{_few(unknown)}: no address found here; fine if ~/.ssh/config knows the name"
        )
    loopback = [name for name in marks if name == "localhost" or name.startswith("127.")]
    if loopback and len(candidates) > 1:
        warnings.append(f"{_few(loopback)}: means another machine on every host")
    return warnings


def is_this_machine(name: str) -> bool:
    """Whether ``name`` is this machine's own, or resolves to one of its addresses."""
    own = socket.gethostname()
    return name in ("localhost", own, own.partition(".")[0]) or _THIS_MACHINE in _marks(name)


def _resolve_all(names: Sequence[str], seconds: float) -> dict[str, set[str]]:
    marks: dict[str, set[str]] = {name: set() for name in names}
    waiting = list(names)

    def work() -> None:
        while True:
            try:
                name = waiting.pop()
            except IndexError:
                return
            marks[name] = _marks(name)

    # Daemon threads: a name server that never answers must not keep the command from ending.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(16, len(names)))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    waiting.clear()
    return dict(marks)


def _marks(name: str) -> set[str]:
    try:
        infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    found = {str(info[4][0]).partition("%")[0] for info in infos}
    literal = name in found
    if any(_is_local(address, literal) for address in found):
        found.add(_THIS_MACHINE)
    return found


def _is_local(address: str, literal: bool) -> bool:
    parsed = ipaddress.ip_address(address)
    if parsed.is_loopback:
        return not literal or address in ("127.0.0.1", "::1")
    family = socket.AF_INET6 if parsed.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
