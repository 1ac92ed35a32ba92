"""Command lines: mistakes are one line, and the types of numbers that options take."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from dsmoe.common.errors import UsageError

MOST = 10**9  # no option counts more than this; a larger number is a slip of the keys


class OneLineParser(argparse.ArgumentParser):
    """Raises UsageError where argparse would print the whole usage and end the process."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def whole(text: str, least: int = 0, most: int = MOST) -> int:
    """A whole number from ``least`` to ``most``."""
    try:
        value = int(text) if len(text) < 40 else most + 1
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a whole number") from None
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r} is not a whole number from {least} to {most}"
        )
    return value


def count(text: str) -> int:
    """A whole number of at least 1."""
    return whole(text, 1)


def seed(text: str) -> int:
    """A seed: torch's generators take 64 bits."""
    return whole(text, 0, 2**63 - 1)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a number above 0")
    return value
