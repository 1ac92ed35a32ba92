"""The launcher's host file: one ``NAME slots=N`` a line, read strictly and written.

The reader has the launcher's own grammar (overlay/deepspeed/launcher/host_grammar.py): what one
of them reads, the other reads to the same hosts, slots and order.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Sequence

from dsmoe.common.errors import HostProblem
from dsmoe.common.typed import program
from dsmoe.hosts.host import Host, grammar

MAX_BYTES: int = grammar.MAX_BYTES


def read_hostfile(path: str | Path) -> list[Host]:
    """The hosts of a host file, in its order.

    Raises HostProblem, with the file and the line number, for everything but ``NAME slots=N``
    lines and blank lines, for a host that appears twice, and for a file without hosts.
    """
    try:
        data = read_limited(path)
    except FileNotFoundError:
        raise HostProblem(
            f"{path}: found no such file, expected a host file; {program('hosts')} writes one"
        ) from None
    except (OSError, ValueError) as error:
        raise HostProblem(f"{path}: cannot be read: {_why(error)}; expected a host file") from None
    return parse_hostfile(data, str(path))


def parse_hostfile(data: bytes, where: str) -> list[Host]:
    """The hosts in the bytes of a host file; ``where`` begins every message."""
    try:
        return [Host(name, slots) for name, slots, _ in grammar.parse(data, where)]
    except grammar.GrammarError as error:
        raise HostProblem(str(error)) from None


def text_lines(data: bytes, where: str) -> list[str]:
    """``data`` as lines of text; LF, CRLF and CR end a line, as for Python's ``open``.

    Raises HostProblem for a file over MAX_BYTES, bytes that are not UTF-8 and control characters.
    """
    try:
        lines: list[str] = grammar.text_lines(data, where)
    except grammar.GrammarError as error:
        raise HostProblem(str(error)) from None
    return lines


def read_limited(path: str | Path) -> bytes:
    """Up to MAX_BYTES + 1 bytes of a regular file.

    Raises OSError for any other: a FIFO waits for its writer, and a device may never end. Raises
    ValueError for a NUL in the name.
    """
    # Asked before it is opened, for opening a FIFO waits; and a tape is rewound by it.
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
        raise OSError(0, "it is not a regular file")
    with Path(path).open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def format_hostfile(hosts: Sequence[Host]) -> bytes:
    """The bytes of the host file of ``hosts``: ``NAME slots=N`` lines only."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts).encode("ascii")
