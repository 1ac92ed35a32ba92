"""The overlay: whole files that are copied into the checkout beside DeepSpeed's own."""

from __future__ import annotations

import os
from pathlib import Path

from dsmoe.patchset.inputs import read_input

_JUNK_NAMES = ("__pycache__", ".DS_Store")
_JUNK_ENDINGS = (".pyc", ".pyo", ".orig", ".rej", "~")


def is_junk(path: str) -> bool:
    """Caches and leftovers that are never part of the overlay."""
    parts = path.split("/")
    return any(part in _JUNK_NAMES for part in parts) or parts[-1].endswith(_JUNK_ENDINGS)


def overlay_files(folders: tuple[Path, ...]) -> dict[str, Path]:
    """Target path -> source file over all overlay folders; a later folder wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                source = Path(root) / name
                path = source.relative_to(folder).as_posix()
                if not is_junk(path) and path != ".gitkeep":
                    found[path] = source
    return dict(sorted(found.items()))


def overlay_mode(source: Path) -> str:
    """The git mode of an overlay file."""
    if source.is_symlink():
        return "120000"
    return "100755" if os.access(source, os.X_OK) else "100644"


def overlay_content(source: Path) -> bytes:
    """The bytes that git stores for an overlay file (a link's target for a link)."""
    return os.fsencode(os.readlink(source)) if source.is_symlink() else read_input(source)
