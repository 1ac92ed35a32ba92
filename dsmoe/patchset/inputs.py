"""Reading files that somebody else may have written: regular files of a bounded size only."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

#: More than any series, patch or description has.
MAX_BYTES = 16 << 20


def read_input(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of the regular file ``path``.

    Raises:
        OSError: it cannot be read, or it is a folder, a device, a pipe or a socket.
        ValueError: it is larger than ``limit`` bytes, or no file can have its name.
    """
    # O_NONBLOCK: opening a pipe that nobody writes to must not wait.
    handle = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        if found.st_size > limit:
            raise ValueError(f"{path} has {found.st_size} bytes, more than {limit}")
        return stream.read()


def is_plain_path(path: object) -> bool:
    """Whether ``path`` is a relative path that stays below its root and outside of .git."""
    if not isinstance(path, str) or not path or "\0" in path or path.startswith("/"):
        return False
    parts = path.split("/")
    return not any(part in ("", ".", "..") or part.lower() == ".git" for part in parts)
