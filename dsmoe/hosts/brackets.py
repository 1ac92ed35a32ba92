"""Slurm's compact forms: ``node[01-03,07],gpu5`` for names and ``4(x2),3`` for counts.

Checked against ``scontrol show hostnames`` of Slurm 22.05: the width of a number is that of the
low bound, several brackets in one name give their product, and a bracket need not be the last.
"""

from __future__ import annotations

import re
from itertools import product

from dsmoe.common.errors import HostProblem
from dsmoe.hosts.host import shown

MAX_NAMES = 65536
_ITEM = re.compile(r"(?:[^\[\],\s]|\[[^\[\]\s]*\])+")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_COUNT = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")


def expand_names(nodelist: str) -> list[str]:
    """The host names of a Slurm node list, in its order.

    Raises HostProblem for text that is not in Slurm's syntax or means over MAX_NAMES names. The
    names themselves are not judged.
    """
    names: list[str] = []
    for item in _items(nodelist):
        parts: list[list[str]] = []
        for piece in re.findall(r"\[[^\]]*\]|[^\[\]]+", item):
            parts.append(_numbers(piece[1:-1], nodelist) if piece[0] == "[" else [piece])
        size = 1
        for part in parts:
            size *= len(part)
        if len(names) + size > MAX_NAMES:
            raise HostProblem(f"node list {shown(nodelist)}: means over {MAX_NAMES} hosts")
        names += ["".join(choice) for choice in product(*parts)]
    return names


def expand_counts(text: str) -> list[int]:
    """The counts of a form like ``4(x2),3``: [4, 4, 3]. Raises HostProblem otherwise."""
    counts: list[int] = []
    for item in text.split(","):
        match = _COUNT.fullmatch(item)
        repeat = int(match.group(2) or 1) if match else 0
        if not match or not 1 <= repeat <= MAX_NAMES - len(counts):
            raise HostProblem(f"found {shown(text)}, expected counts in the form '4(x2),3'")
        counts += [int(match.group(1))] * repeat
    return counts


def _items(nodelist: str) -> list[str]:
    items: list[str] = []
    position = 0
    while True:
        match = _ITEM.match(nodelist, position)
        if not match:
            break
        items.append(match.group())
        position = match.end()
        if position == len(nodelist):
            return items
        if nodelist[position] != ",":
            break
        position += 1
    rest = shown(nodelist[position:]) if nodelist[position:] else "the end"
    raise HostProblem(
        f"node list {shown(nodelist)}: found {rest} at character {position + 1}, "
        "expected a form like 'node[01-03,07],gpu5'"
    )


def _numbers(ranges: str, nodelist: str) -> list[str]:
    numbers: list[str] = []
    for piece in ranges.split(","):
        match = _RANGE.fullmatch(piece)
        low, high = (match.group(1), match.group(2) or match.group(1)) if match else ("1", "0")
        if int(high) < int(low):
            raise HostProblem(
                f"node list {shown(nodelist)}: found the range {shown(piece)}, "
                "expected a number or two rising numbers, as in '01-03'"
            )
        if int(high) - int(low) >= MAX_NAMES - len(numbers):
            raise HostProblem(f"node list {shown(nodelist)}: means over {MAX_NAMES} hosts")
        numbers += [str(n).zfill(len(low)) for n in range(int(low), int(high) + 1)]
    return numbers
