"""The host file's grammar: names, slot counts, limits, and the bytes of a file as hosts.

One ``NAME slots=N`` a line; blank lines, CRLF and CR are fine. Everything else is refused with the
number of its line: comments, a byte-order mark, ``lots=8``, counts that are not from 1 to
MAX_SLOTS, a host twice, a file without hosts, names that ssh, pdsh or ``--include`` could take for
something else. The rules follow from runner.py and multinode_runner.py: a name goes into
``pdsh -w A,B`` (where ``[ ] ^ / -`` and ``type:user@`` have meanings) and into
``--include NAME:0,1@NAME``.

This file imports the standard library alone, because dsmoe loads it by its path: the launcher and
dsmoe have one grammar. Python 3.8 can read it.
"""

from __future__ import annotations

import re

MAX_SLOTS = 1024  # more on one host is a typing error
MAX_BYTES = 4 << 20  # of a file; 100,000 hosts take less
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?:{_BYTE}\.){{3}}{_BYTE}")
_NUMBERS = re.compile(r"[0-9.]+")
_IPV6 = re.compile(r"[0-9A-Fa-f:.\[\]%A-Za-z]+")
_COUNT = re.compile(r"[0-9]{1,9}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


class GrammarError(ValueError):
    """``str(error)`` says what was found and what was expected, in ASCII, led by the place."""


def shown(text: str) -> str:
    """``text`` quoted on one line, in ASCII, cut to 60 characters: fit for an error message."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def usable_name(name: str) -> bool:
    """Whether ``name`` is a host name or IPv4 address that means nothing else to ssh and pdsh."""
    if len(name) > 253 or not _NAME.fullmatch(name):
        return False
    return not _NUMBERS.fullmatch(name) or _IPV4.fullmatch(name) is not None


def check_name(name: str, where: str) -> str:
    """``name``, where it is usable; raises GrammarError, led by ``where``, where it is not."""
    if usable_name(name):
        return name
    if len(name) <= 253 and _NUMBERS.fullmatch(name) and _NAME.fullmatch(name):
        expected = "a host name or four numbers from 0 to 255"
        raise GrammarError(f"{where}: found {shown(name)}, expected {expected}")
    # A port or slot count at the end ("[fd00::1]:4") must not hide that this is IPv6.
    if name.count(":") >= 2 and _IPV6.fullmatch(name):
        raise GrammarError(
            f"{where}: found the IPv6 address {shown(name)}, which the launcher cannot use "
            "(pdsh and --include split at ':'); give a name that resolves to it"
        )
    if "@" in name:
        raise GrammarError(
            f"{where}: found {shown(name)}, expected a host without a user; "
            "set the user in ~/.ssh/config"
        )
    raise GrammarError(
        f"{where}: found the host name {shown(name)}, expected letters, digits, '-', '_' and '.', "
        "not starting with '-' (other characters have meanings for ssh and pdsh)"
    )


def check_slots(text: str, where: str) -> int:
    """The count in ``text``: ASCII digits, 1 to MAX_SLOTS. Raises GrammarError as check_name."""
    if _COUNT.fullmatch(text) and 1 <= int(text) <= MAX_SLOTS:
        return int(text)
    raise GrammarError(
        f"{where}: found the slot count {shown(text)}, "
        f"expected a whole number from 1 to {MAX_SLOTS}"
    )


def text_lines(data: bytes, where: str) -> list[str]:
    """``data`` as lines of text; LF, CRLF and CR end a line, as for Python's ``open``.

    Raises GrammarError for more than MAX_BYTES, bytes that are not UTF-8 and control characters.
    """
    if len(data) > MAX_BYTES:
        raise GrammarError(f"{where}: found over {MAX_BYTES} bytes, expected a list of hosts")
    result = []
    for number, line in enumerate(_LINE_END.split(data), start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise GrammarError(f"{where}:{number}: found bytes that are not UTF-8 text") from None
        if _CONTROL.search(text):
            raise GrammarError(f"{where}:{number}: found a control character in {shown(text)}")
        result.append(text)
    return result


def parse(data: bytes, where: str) -> list[tuple[str, int, int]]:
    """The hosts in the bytes of a host file: (name, slots, number of its line), in its order.

    ``where`` begins every message. Raises GrammarError. The time is linear in the bytes.
    """
    if data.startswith(_BOM):
        raise GrammarError(
            f"{where}:1: found a byte-order mark, expected 'NAME slots=N'; save the file as UTF-8 "
            "without it"
        )
    hosts: list[tuple[str, int, int]] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(text_lines(data, where), start=1):
        words = line.split()
        if not words:
            continue
        here = f"{where}:{number}"
        if "#" in line:
            raise GrammarError(f"{here}: found a comment, expected 'NAME slots=N'; remove it")
        if len(words) != 2 or not words[1].startswith("slots="):
            raise GrammarError(f"{here}: found {shown(line.strip())}, expected 'NAME slots=N'")
        name = check_name(words[0], here)
        slots = check_slots(words[1][len("slots=") :], here)
        first = first_line.setdefault(name.lower(), number)
        if first != number:
            raise GrammarError(
                f"{here}: found the host {name} again, first on line {first}; "
                "expected every host once"
            )
        hosts.append((name, slots, number))
    if not hosts:
        raise GrammarError(f"{where}: found no host, expected at least one 'NAME slots=N' line")
    return hosts
