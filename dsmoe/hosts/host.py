"""One host of the cluster; which names and slot counts the launcher can use.

The rules are those of the launcher itself (overlay/deepspeed/launcher/host_grammar.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from dsmoe.common import overlay_modules
from dsmoe.common.errors import HostProblem

grammar = overlay_modules.load("deepspeed/launcher/host_grammar.py")
MAX_SLOTS: int = grammar.MAX_SLOTS


@dataclass(frozen=True)
class Host:
    """A host of a host file: ``slots`` is the number of processes (GPUs) it runs, at least 1."""

    __slots__ = ("name", "slots")
    name: str
    slots: int


@dataclass(frozen=True)
class Candidate:
    """A host as its source gives it; ``slots`` is None where the source does not say."""

    __slots__ = ("name", "slots", "where")
    name: str
    slots: int | None
    where: str


def shown(text: str) -> str:
    """``text`` quoted on one line, in ASCII, cut to 60 characters: fit for an error message."""
    quoted: str = grammar.shown(text)
    return quoted


def check_name(name: str, where: str) -> str:
    """Return ``name``; raise HostProblem, led by ``where``, if the launcher cannot use it."""
    try:
        grammar.check_name(name, where)
    except grammar.GrammarError as error:
        raise HostProblem(str(error)) from None
    return name


def check_slots(text: str, where: str) -> int:
    """The slot count in ``text`` (ASCII digits, 1 to MAX_SLOTS); raise HostProblem otherwise."""
    try:
        return int(grammar.check_slots(text, where))
    except grammar.GrammarError as error:
        raise HostProblem(str(error)) from None


def few(names: Sequence[str]) -> str:
    """The first three of ``names``, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
