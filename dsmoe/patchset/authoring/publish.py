"""Writing several project files as one step: staged first, renamed after a commit point.

A kill before the manifest is in place changes nothing; after it, the next command that writes
finishes the renames (:mod:`dsmoe.patchset.pending`). So patch/, overlay/ and result.json never
disagree for longer than that.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from dsmoe.common.files import write_atomically
from dsmoe.patchset.pending import MANIFEST, STAGE, finish


@dataclass(frozen=True)
class Item:
    """One file to write; ``content`` None removes it and the folders that this empties.

    ``root`` is the folder that is never removed; ``path`` is relative to it.
    """

    root: Path
    path: str
    content: bytes | None
    mode: int = 0o644

    @property
    def target(self) -> Path:
        return self.root / self.path

    def is_there(self) -> bool:
        """Whether the file already is as asked."""
        if self.content is None:
            return not os.path.lexists(self.target)
        try:
            same = self.target.read_bytes() == self.content
            return same and (self.target.stat().st_mode & 0o100) == (self.mode & 0o100)
        except OSError:
            return False


def publish(folder: Path, items: Sequence[Item]) -> list[Item]:
    """Write ``items`` through a staging folder in ``folder``; those that were not yet there."""
    todo = [item for item in items if not item.is_there()]
    if not todo:
        return []
    stage = folder / STAGE
    shutil.rmtree(stage, ignore_errors=True)
    manifest = []
    for number, item in enumerate(todo):
        if item.content is not None:
            write_atomically(stage / str(number), item.content, item.mode)
        root = os.path.relpath(item.root, folder)
        manifest.append([root, item.path, None if item.content is None else str(number)])
    write_atomically(stage / MANIFEST, json.dumps(manifest).encode())
    finish(folder)
    return todo
