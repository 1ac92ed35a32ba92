"""One host of the cluster, and which names and slot counts the pinned launcher can use.

The rules follow from deepspeed/launcher/{runner,multinode_runner}.py at bd3ebd: a name goes into
``pdsh -w A,B`` (where ``[ ] ^ / -`` and ``type:user@`` have meanings) and into ``--include
NAME:0,1@NAME``; unpatched, also unquoted into ``ssh NAME hostname -I`` through a shell.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from dsmoe.common.errors import HostProblem

MAX_SLOTS = 1024
"""More slots than this on one host is taken for a slip of the keys."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SLOTS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Host:
    """A host of a host file: ``slots`` is the number of processes (GPUs) it runs, at least 1."""

    name: str
    slots: int


@dataclass(frozen=True)
class Candidate:
    """A host as its source gives it; ``slots`` is None where the source does not say."""

    name: str
    slots: int | None
    where: str


def shown(text: str) -> str:
    """``text`` quoted on one line, in ASCII, cut to 60 characters: fit for an error message."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def check_name(name: str, where: str) -> str:
    """Return ``name``; raise HostProblem, led by ``where``, if the launcher cannot use it."""
    if len(name) <= 253 and _NAME.fullmatch(name):
        if not re.fullmatch(r"[0-9.]+", name) or _is_ipv4(name):
            return name
        raise HostProblem(
            f"{where}: found {shown(name)}, expected a host name or four numbers from 0 to 255"
        )
    if _looks_ipv6(name):
        raise HostProblem(
            f"{where}: found the IPv6 address {shown(name)}, which the pinned launcher cannot use "
            "(pdsh and --include split at ':'); give a name that resolves to it"
        )
    if "@" in name:
        raise HostProblem(
            f"{where}: found {shown(name)}, expected a host without a user; "
            "set the user in ~/.ssh/config"
        )
    raise HostProblem(
        f"{where}: found the host name {shown(name)}, expected letters, digits, '-', '_' and '.', "
        "not starting with '-' (for ssh and pdsh other signs have meanings)"
    )


def check_slots(text: str, where: str) -> int:
    """The slot count in ``text`` (ASCII digits, 1 to MAX_SLOTS); raise HostProblem otherwise."""
    if _SLOTS.fullmatch(text) and 1 <= int(text) <= MAX_SLOTS:
        return int(text)
    raise HostProblem(
        f"{where}: found the slot count {shown(text)}, "
        f"expected a whole number from 1 to {MAX_SLOTS}"
    )


def _is_ipv4(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _looks_ipv6(name: str) -> bool:
    # A trailing port or slot count ("[fd00::1]:4") must not hide that this is IPv6.
    return name.count(":") >= 2 and re.fullmatch(r"[0-9A-Fa-f:.\[\]%A-Za-z]+", name) is not None
