"""Plain tables of text."""

from __future__ import annotations

import textwrap
from typing import Sequence

WIDTH = 80


def wrapped(line: str, further: str = "    ") -> list[str]:
    """``line`` in pieces of at most WIDTH columns, cut at blanks; those after the first begin with
    the blanks of ``line`` and ``further``. A word that is longer stays whole."""
    start = line[: len(line) - len(line.lstrip(" "))] + further
    return textwrap.wrap(
        line, WIDTH, subsequent_indent=start, break_long_words=False, break_on_hyphens=False
    )


def columns(rows: Sequence[Sequence[str]], gap: str = "  ") -> list[str]:
    """A line for each of ``rows``, whose cells stand below one another."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        gap.join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows
    ]
