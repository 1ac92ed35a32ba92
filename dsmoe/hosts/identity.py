"""Two names of one machine, found by their addresses before the launcher starts twice on it."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from typing import Sequence

from dsmoe.common.errors import HostProblem
from dsmoe.hosts.host import Candidate, few

RESOLVE_SECONDS = 2.0
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
        for mark in marks[candidate.name] or ():
            first = owner.setdefault(mark, candidate)
            if first is not candidate:
                raise HostProblem(
                    f"{candidate.where}: {candidate.name} and {first.name} ({first.where}) are one "
                    f"machine ({mark}), expected every host once"
                )
    warnings = []
    unknown = [name for name, found in marks.items() if found == ()]
    if unknown:
        warnings.append(
            f"{few(unknown)}: no address found here; fine if ~/.ssh/config knows the name"
        )
    late = [name for name, found in marks.items() if found is None]
    if late:
        warnings.append(
            f"{few(late)}: the name server did not answer within {seconds:g} s in all, so these "
            "are compared by name alone; --no-resolve does not ask it"
        )
    loopback = [name for name in marks if name == "localhost" or name.startswith("127.")]
    if loopback and len(candidates) > 1:
        warnings.append(f"{few(loopback)}: means another machine on every host")
    return warnings


def is_this_machine(name: str) -> bool:
    """Whether ``name`` is this machine's own, or resolves to one of its addresses."""
    own = socket.gethostname()
    return name in ("localhost", own, own.partition(".")[0]) or _THIS_MACHINE in _marks(name)


def _resolve_all(names: Sequence[str], seconds: float) -> dict[str, tuple[str, ...] | None]:
    """Name -> its addresses, () where it has none, None where there was no answer in time."""
    marks: dict[str, tuple[str, ...] | None] = dict.fromkeys(names)
    waiting = []
    for name in reversed(names):
        if _is_address(name):
            marks[name] = _with_this_machine((name,), name)  # asks no name server
        else:
            waiting.append(name)

    def work() -> None:
        while True:
            try:
                name = waiting.pop()
            except IndexError:
                return
            marks[name] = _marks(name)

    # Daemon threads: a name server that never answers must not keep the command from ending.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(16, len(waiting)))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    waiting.clear()
    return dict(marks)


def _marks(name: str) -> tuple[str, ...]:
    try:
        infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    found = tuple({str(info[4][0]).partition("%")[0] for info in infos})
    return _with_this_machine(found, name)


def _with_this_machine(addresses: tuple[str, ...], name: str) -> tuple[str, ...]:
    """``addresses``, and the mark of this machine where one of them is its own."""
    if any(_is_local(address, address == name) for address in addresses):
        return (*addresses, _THIS_MACHINE)
    return addresses


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


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
