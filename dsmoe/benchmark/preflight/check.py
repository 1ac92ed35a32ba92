"""One line of the environment check, and how the lines are shown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Sequence

OK = "ok"
# Good for some runs and not for others, or a thing to know.
NOTE = "note"
FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """``what`` was looked at on ``host`` ("" here), what was ``found``, and how to ``fix`` it."""

    what: str
    state: str
    found: str
    fix: str = ""
    host: str = ""


def table(checks: Sequence[Check]) -> list[str]:
    """A mark a line; the fix of what failed, or is only good for some runs, on a line below."""
    names = [f"{check.host}: {check.what}" if check.host else check.what for check in checks]
    width = max(map(len, names), default=0)
    lines = []
    for name, check in zip(names, checks):
        lines.append(f"[{check.state:^4}] {name:<{width}}  {check.found}".rstrip())
        if check.fix:
            lines.append(f"{'':<{width + 9}}fix: {check.fix}")
    return [line.encode("ascii", "replace").decode("ascii") for line in lines]


def as_json(checks: Sequence[Check]) -> str:
    """{"ok": whether nothing failed, "checks": [...]} on several lines."""
    values = {"ok": not failures(checks), "checks": [asdict(check) for check in checks]}
    return json.dumps(values, indent=2)


def failures(checks: Sequence[Check]) -> list[Check]:
    return [check for check in checks if check.state == FAIL]
