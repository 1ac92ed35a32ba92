"""Plain tables of text."""

from __future__ import annotations

from typing import Sequence


def columns(rows: Sequence[Sequence[str]], gap: str = "  ") -> list[str]:
    """A line for each of ``rows``, whose cells stand below one another."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    return [
        gap.join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows
    ]
