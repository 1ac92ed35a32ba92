"""The blocks of the documentation that a reader pastes."""

from __future__ import annotations

import re
from pathlib import Path

BLOCK = re.compile(r"^```(python|bash|sh|shell)\n(.*?)^```$", re.M | re.S)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every Python and shell block of ``page``, in order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def shortened(text: str) -> str:
    """``text`` with trainings of two steps: those of a page's size take minutes on two cores."""
    return re.sub(r"(?<=--steps )\d+", "2", text)
