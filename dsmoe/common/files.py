"""Reading files that somebody else may have written, and writing files whole or not at all.

Every file that a user names goes through here. An input is a regular file of a bounded size: a
pipe would wait for its writer, and a device may never end. An output that exists is replaced only
if it is a regular file; a symbolic link stays, and the file that it names is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from dsmoe.common.errors import UsageError

#: More than any series, patch or description has.
MAX_BYTES = 16 << 20
#: More than any result file, curve or tokenizer has.
MAX_LARGE_BYTES = 512 << 20
_BESIDE = ".dsmoe-"  # how the name of a file begins until it is whole
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def expanded(name: str | Path) -> Path:
    """``name`` with the home folder that ``~`` or ``~user`` stands for; UsageError without one."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{str(name)[:200]}: found no such user, or none with a home folder; expected a name "
            "whose ~ means one: write the folder out, or ./~ for a name that begins so"
        ) from None


def is_file(path: str | Path) -> bool:
    """Whether a regular file is seen at ``path``; False, not OSError, where nobody may look."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises, until Python 3.14


def is_folder(path: str | Path) -> bool:
    """As :func:`is_file`, of a folder."""
    return os.path.isdir(path)  # noqa: PTH112


def read_input(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of the regular file ``path``.

    Raises:
        OSError: it cannot be read, or it is a folder, a device, a pipe or a socket.
        ValueError: it is larger than ``limit`` bytes, or no file can have its name.
    """
    # O_NONBLOCK: opening a pipe that nobody writes to must not wait.
    handle = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise _not_regular(found, path)
    with os.fdopen(handle, "rb") as stream:
        if found.st_size > limit:
            raise ValueError(f"{path} has {found.st_size} bytes, more than {limit}")
        return stream.read()


def read_large(path: Path) -> bytes:
    """As :func:`read_input`, up to MAX_LARGE_BYTES; a larger file is an OSError too."""
    try:
        return read_input(path, MAX_LARGE_BYTES)
    except ValueError as error:
        raise OSError(errno.EFBIG, str(error), str(path)) from error


def _not_regular(found: os.stat_result, path: Path) -> OSError:
    kind = next((name for test, name in _KINDS if test(found.st_mode)), "something else")
    return OSError(errno.EINVAL, f"it is not a regular file, but {kind}", str(path))


def refuse_irregular(path: Path) -> None:
    """Raises OSError unless ``path`` is a regular file, or a link to one."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise _not_regular(found, path)


def refuse_output(path: Path) -> None:
    """Raises OSError where :func:`write_output` could not write ``path``; changes nothing."""
    target = Path(os.path.realpath(path))
    try:
        found = target.stat()
    except FileNotFoundError:
        folder = target.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
    else:
        if not stat.S_ISREG(found.st_mode):
            raise _not_regular(found, path)
        folder = target.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "the folder is not writable", str(folder))


def write_output(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, which the user may have named; its folder is made.

    Raises OSError, also where ``path`` exists and is no regular file.
    """
    target = Path(os.path.realpath(path))  # a link stays, and its file is written
    mode = 0o666 & ~_umask()
    with contextlib.suppress(FileNotFoundError):
        found = target.stat()
        if not stat.S_ISREG(found.st_mode):
            raise _not_regular(found, path)
        mode = stat.S_IMODE(found.st_mode)
    write_atomically(target, content, mode)


def _umask() -> int:
    now = os.umask(0o077)
    os.umask(now)
    return now


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> bool:
    """Write ``content`` (and ``mode``) to ``path`` through a rename; False when already there.

    A symbolic link is replaced. Raises OSError, also where a device, a pipe or a socket is there.
    """
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            raise _not_regular(found, path)
    with contextlib.suppress(OSError):
        same_mode = not path.is_symlink() and (path.stat().st_mode & 0o111) == (mode & 0o111)
        if same_mode and path.read_bytes() == content:
            return False
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=str(path.parent), prefix=_BESIDE)
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


def remove_left_over(folder: Path) -> None:
    """Remove what a killed :func:`write_atomically` left in ``folder``; nobody else may write."""
    for path in folder.glob(_BESIDE + "*"):
        with contextlib.suppress(OSError):
            path.unlink()


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
