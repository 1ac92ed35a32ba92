"""Which hosts of a host file a run takes, and the interface by which a host meets the others."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import psutil

from dsmoe.common.errors import UsageError
from dsmoe.hosts.host import Host
from dsmoe.hosts.hostfile import read_hostfile

INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Layout:
    """``devices`` processes on each of ``names``, the first hosts of ``hostfile``.

    ``hostfile`` None: this machine alone.
    """

    names: tuple[str, ...]
    devices: int
    hostfile: Path | None = None

    @property
    def hosts(self) -> int:
        return len(self.names)


def lay_out(hostfile: Path | None, processes: int) -> Layout:
    """Hosts for ``processes``: the first alone if it has the slots, else as many as are filled.

    A result row has one number of devices a host, so all hosts of a run have the same. Raises
    UsageError where the file's hosts cannot be filled so, HostProblem for a file that is not one.
    """
    if hostfile is None:
        return Layout(("localhost",), processes)
    names, devices = fill(
        read_hostfile(hostfile),
        processes,
        str(hostfile),
        "name another number, or another host file with --hostfile",
    )
    return Layout(names, devices, hostfile.absolute())


def fill(
    found: Sequence[Host], processes: int, where: str, remedy: str
) -> tuple[tuple[str, ...], int]:
    """The hosts that ``processes`` fill, and how many each has; see :func:`lay_out`.

    ``where`` says whose hosts they are and ``remedy`` what to do where it cannot be; UsageError.
    """
    devices = found[0].slots
    if processes <= devices:
        return (found[0].name,), processes
    count, rest = divmod(processes, devices)
    taken = found[:count]
    fewer = [host for host in taken if host.slots < devices]
    if rest or len(taken) < count or fewer:
        has = ", ".join(f"{host.name} slots={host.slots}" for host in found[:8])
        more = ", ..." if len(found) > 8 else ""
        raise UsageError(
            f"{processes} processes do not fill hosts of {devices} slots each; {where} has "
            f"{has}{more}: {remedy}"
        )
    return tuple(host.name for host in taken), devices


def gloo_interface(environment: Mapping[str, str]) -> str | None:
    """The interface with this host's address on the way to $MASTER_ADDR; None: gloo chooses.

    gloo looks up this machine's own name, which may resolve to a loopback address or not at all.
    A GLOO_SOCKET_IFNAME that is set stays.
    """
    return None if INTERFACE in environment else interface_to_master(environment)


def interface_to_master(environment: Mapping[str, str]) -> str | None:
    """The interface on the way to $MASTER_ADDR; None where that is not known. Sends nothing."""
    master = environment.get("MASTER_ADDR")
    if not master:
        return None
    try:
        family, kind, _, _, address = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            here = str(probe.getsockname()[0])
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == here for entry in addresses):
            return name
    return None
