"""JSON that somebody else may have written: read to plain values, or refused.

Python's json takes what nothing can do with afterwards: integers of hundreds of digits, numbers
over the range of a float (infinity), halves of a character, any depth.
"""

from __future__ import annotations

import json
import math
from typing import Any

from dsmoe.common.errors import ResultsError

DEPTH = 32
LARGEST = 2**63
# 1 January of the year 10000: the calendar of Python ends there.
LAST_SECOND = 253402300800.0
# More TFLOPS, or tokens a second, than anything has; beyond it a figure's axes overflow.
LARGEST_FIGURE = 1e15


def parse(line: str) -> Any:
    """The value of a line of JSON. Raises ResultsError that says what is wrong."""
    try:
        value = json.loads(line, parse_constant=_no_constant)
    except RecursionError as error:
        raise ResultsError(f"not a JSON record: nested more than {DEPTH} deep") from error
    except ValueError as error:
        raise ResultsError(f"not a JSON record: {error!s:.120}") from error
    _check(value)
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _check(whole: Any) -> None:
    level = [whole]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                inner += value
            elif not _plain(value):
                raise ResultsError(f"not a JSON record: found {_short(value)}; expected {EXPECTED}")
        if not inner:
            return
        level = inner
    raise ResultsError(f"not a JSON record: nested more than {DEPTH} deep")


EXPECTED = "numbers of at most 64 bits and whole characters"


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return whole_characters(value)
    return is_number(value) or value is None or isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number, an integer of at most 64 bits if it is one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value)


def is_time(value: Any) -> bool:
    """Whether ``value`` is seconds since 1970 up to the end of the year 9999."""
    return is_number(value) and 0 <= value < LAST_SECOND


def whole_characters(text: str) -> bool:
    """Whether ``text`` has no half of a character (a lone surrogate), which no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    if isinstance(value, int):
        return f"an integer of {value.bit_length()} bits"
    return f"{value!a:.60}"
