"""Three records in the git folder of the work tree (``.git/dsmoe``).

The journal tells of a move under way, another record of the series that is applied, and a note of
an export under way. A record that cannot be understood counts as none: content decides, not memory.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsmoe.common.files import write_atomically
from dsmoe.patchset.inputs import is_plain_path, read_input
from dsmoe.patchset.tree import Entry

_ID = re.compile(r"[0-9a-f]{40}")
_MODES = ("100644", "100755", "120000")


@dataclass(frozen=True)
class Record:
    """Entries before and after a move, by path (None: no such file).

    ``target`` is "applied", "pristine" or "exported"; ``series`` is the digest of the series it
    belongs to.
    """

    target: str
    series: str
    before: dict[str, Entry | None] = field(default_factory=dict)
    after: dict[str, Entry | None] = field(default_factory=dict)

    def dump(self) -> bytes:
        return json.dumps(self.__dict__, sort_keys=True).encode()


def read_record(path: Path) -> Record | None:
    """The record at ``path``; None when there is none or it cannot be understood."""
    try:
        data = json.loads(read_input(path))
        return Record(
            str(data["target"]),
            str(data["series"]),
            _entries(data["before"]),
            _entries(data["after"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _entries(data: Any) -> dict[str, Entry | None]:
    if not (isinstance(data, dict) and all(map(is_plain_path, data))):
        raise ValueError("no paths of a checkout")
    return {path: None if item is None else _entry(item) for path, item in data.items()}


def _entry(item: Any) -> Entry:
    mode, oid = item
    if mode not in _MODES or not (isinstance(oid, str) and _ID.fullmatch(oid)):
        raise ValueError("no entry of a tree")
    return mode, oid


@dataclass(frozen=True)
class Records:
    """The three records of one checkout; ``folder`` is its ``.git/dsmoe``."""

    folder: Path

    @property
    def journal(self) -> Path:
        return self.folder / "journal.json"

    @property
    def applied(self) -> Path:
        return self.folder / "applied.json"

    @property
    def exported(self) -> Path:
        return self.folder / "exported.json"

    def write(self, path: Path, record: Record) -> None:
        write_atomically(path, record.dump())

    def clear(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
