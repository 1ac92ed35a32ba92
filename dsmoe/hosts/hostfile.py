"""The launcher's host file: one ``NAME slots=N`` a line, read strictly and written.

The reader has the rules of the patched launcher (deepspeed/launcher/hostfile.py in overlay/) and
refuses what ``fetch_hostfile`` of bd3ebd takes without a word and should not: ``lots=8``,
``slots=0``, a byte-order mark, an empty file (there it means "this machine alone"), names that a
shell would run. Every file accepted here is read by both to the same hosts, slots and order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Sequence

from dsmoe.common.errors import HostProblem
from dsmoe.hosts.host import Host, check_name, check_slots, shown

MAX_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"


def read_hostfile(path: str | Path) -> list[Host]:
    """The hosts of a host file, in its order.

    Raises HostProblem, with the file and the line number, for everything but ``NAME slots=N``
    lines and blank lines, for a host that appears twice, and for a file without hosts.
    """
    path = Path(path)
    if not path.is_file():
        what = "found no plain file" if path.exists() else "found no such file"
        raise HostProblem(f"{path}: {what}, expected a host file; get_hostfiles.py writes one")
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise HostProblem(f"{path}: cannot be read: {error.strerror}") from None
    return parse_hostfile(data, str(path))


def parse_hostfile(data: bytes, where: str) -> list[Host]:
    """The hosts in the bytes of a host file; ``where`` begins every message."""
    if data.startswith(_BOM):
        raise HostProblem(
            f"{where}:1: found a byte-order mark, which the launcher takes for a part of the "
            "first name; save the file as UTF-8 without it"
        )
    hosts: list[Host] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(text_lines(data, where), start=1):
        words = line.split()
        if not words:
            continue
        here = f"{where}:{number}"
        if "#" in line:
            raise HostProblem(f"{here}: found a comment, which the launcher cannot read; remove it")
        if len(words) != 2 or not words[1].startswith("slots="):
            raise HostProblem(f"{here}: found {shown(line.strip())}, expected 'NAME slots=N'")
        name = check_name(words[0], here)
        slots = check_slots(words[1][len("slots=") :], here)
        key = name.lower()
        if key in first_line:
            raise HostProblem(
                f"{here}: found the host {name} again, first on line {first_line[key]}; "
                "expected every host once"
            )
        first_line[key] = number
        hosts.append(Host(name, slots))
    if not hosts:
        raise HostProblem(f"{where}: found no host, expected at least one 'NAME slots=N' line")
    return hosts


def text_lines(data: bytes, where: str) -> list[str]:
    """``data`` as lines of text; LF, CRLF and CR end a line, as for Python's ``open``.

    Raises HostProblem for a file over MAX_BYTES, bytes that are not UTF-8 and control characters.
    """
    if len(data) > MAX_BYTES:
        raise HostProblem(f"{where}: found over {MAX_BYTES} bytes, expected a list of hosts")
    lines = re.split(rb"\r\n|\r|\n", data)
    result = []
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise HostProblem(f"{where}:{number}: found bytes that are not UTF-8 text") from None
        if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):
            raise HostProblem(f"{where}:{number}: found a control character in {shown(text)}")
        result.append(text)
    return result


def format_hostfile(hosts: Sequence[Host]) -> bytes:
    """The bytes of the host file of ``hosts``: ``NAME slots=N`` lines only."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts).encode("ascii")
