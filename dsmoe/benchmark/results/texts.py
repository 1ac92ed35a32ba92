"""Which runs had the same text: their losses and rates may be compared, others' may not."""

from __future__ import annotations

import string
from typing import Sequence

from dsmoe.benchmark.results.record import RunRecord

UNKNOWN = "unknown"


def text_names(records: Sequence[RunRecord]) -> list[str]:
    """A letter for the text of each record, by content and tokenizer; "unknown" without one."""
    letters: dict[tuple[str, str], str] = {}
    names = []
    for record in records:
        key = (str(record.data.get("content", "")), str(record.data.get("tokenizer", "")))
        count = len(letters)
        more = str(count // 26) if count >= 26 else ""
        letter = string.ascii_uppercase[count % 26] + more
        names.append(letters.setdefault(key, letter) if key[0] else UNKNOWN)
    return names


def difference(names: Sequence[str]) -> str:
    """What to know about runs of different text, in one line; "" where all had the same."""
    different = sorted(set(names))
    if len(different) < 2:
        return ""
    return f"these runs had texts {', '.join(different)}; their losses do not compare"
