"""What the series may name: plain paths below a folder. Files are read by common/files.py."""

from __future__ import annotations

from dsmoe.common.files import read_input

__all__ = ["is_plain_path", "read_input"]


def is_plain_path(path: object) -> bool:
    """Whether ``path`` is a relative path that stays below its root and outside of .git."""
    if not isinstance(path, str) or not path or "\0" in path or path.startswith("/"):
        return False
    parts = path.split("/")
    return not any(part in ("", ".", "..") or part.lower() == ".git" for part in parts)
