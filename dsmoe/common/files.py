"""Writing files so that a kill leaves the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> bool:
    """Write ``content`` (and ``mode``) to ``path`` through a rename; False when already there."""
    with contextlib.suppress(OSError):
        same_mode = not path.is_symlink() and (path.stat().st_mode & 0o111) == (mode & 0o111)
        if same_mode and path.read_bytes() == content:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=str(path.parent), prefix=".dsmoe-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise
    return True


def remove_file(root: Path, path: str) -> None:
    """Remove ``root/path`` and the folders above it that this leaves empty, never ``root``."""
    target = root / path
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    for parent in target.parents:
        if parent == root:
            return
        try:
            parent.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return
