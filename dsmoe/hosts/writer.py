"""Host files put in place together: checked first, replaced by renames, undone on failure.

New files are made in a hidden folder beside the old ones, flushed and read back; then they replace
the old ones one by one, ``hostfile`` last. If a step fails, the old files come back. A kill between
two renames leaves whole files, some old and some new, and the hidden folder; the next run replaces
them and removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Collection, Iterator, Sequence

from dsmoe.common.errors import EnvironmentProblem, HostProblem
from dsmoe.hosts.host import Host
from dsmoe.hosts.hostfile import format_hostfile, parse_hostfile, read_hostfile

try:
    import fcntl
except ImportError:  # not a POSIX system; the launcher does not run there either
    fcntl = None  # type: ignore[assignment]

_WORK = ".hostfiles-new-"
HOSTFILE = "hostfile"
EVERY_SIZE_TO = 64
"""Up to so many hosts there is a file for each number of them; above, for powers of two."""
_NODE_FILE = re.compile(r"hostfile_[1-9][0-9]*node")


@dataclass
class Written:
    """What a write did: paths written, stale files removed, and warnings."""

    files: list[Path]
    removed: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def sizes(hosts: int) -> list[int]:
    """The numbers N of ``hostfile_{N}node``: each up to 64, then powers of two, and ``hosts``.

    The artifact uses 1, 2, 4 and 8. A file for each of 65,536 would be 65,536 files of 30 GB.
    """
    found = list(range(1, min(hosts, EVERY_SIZE_TO) + 1))
    power = 2 * EVERY_SIZE_TO
    while power < hosts:
        found.append(power)
        power *= 2
    return found if found[-1] == hosts else [*found, hosts]


def file_sizes(hosts: int) -> dict[str, int]:
    """File name -> how many of ``hosts`` hosts it has, the first ones; ``hostfile`` is last."""
    return {**{f"hostfile_{n}node": n for n in sizes(hosts)}, HOSTFILE: hosts}


def write(folder: Path, hosts: Sequence[Host], last_check: Callable[[], None]) -> Written:
    """Write the files of ``file_sizes`` into ``folder``, which is made if only it is missing.

    ``last_check`` is called once everything is ready, just before the first rename; what it raises
    leaves the old files as they were. ``hostfile_{N}node`` files of a former cluster that are not
    replaced are removed, because a run would take their hosts for today's; a file of that name that
    is no host file stays. Raises
    EnvironmentProblem if the folder cannot be written, HostProblem if a file does not read back.
    """
    files = file_sizes(len(hosts))
    try:
        folder.mkdir(exist_ok=True)
        with _locked(folder), _work_folder(folder) as work:
            for name in files:
                _refuse_odd(folder / name)
            stale, warnings = _stale(folder, files)
            new, old = work / "new", work / "old"
            new.mkdir()
            old.mkdir()
            content = format_hostfile(hosts)
            if parse_hostfile(content, HOSTFILE) != list(hosts):
                raise HostProblem(f"{HOSTFILE}: the reader finds other hosts; please report this")
            ends = [found.end() for found in re.finditer(b"\n", content)]
            for name, size in files.items():
                _write_durably(new / name, content[: ends[size - 1]])
            for path in [folder / name for name in files] + stale:
                if path.exists():
                    shutil.copy2(path, old / path.name)
            last_check()
            _replace_all(folder, new, old, list(files), stale)
    except OSError as error:
        where = error.filename or folder
        raise EnvironmentProblem(
            f"{where}: {error.strerror or error}; the host files in {folder} are as they were; "
            "give another folder with --output"
        ) from None
    return Written(
        files=[folder / name for name in files],
        removed=stale,
        warnings=warnings,
    )


def _replace_all(folder: Path, new: Path, old: Path, names: list[str], stale: list[Path]) -> None:
    touched: list[Path] = []
    try:
        for name in names:
            touched.append(folder / name)
            (new / name).replace(folder / name)
        for path in stale:
            touched.append(path)
            path.unlink()
        _flush_folder(folder)
    except BaseException:
        for path in touched:
            # Best effort on the way out: the first error is the one to report.
            with contextlib.suppress(OSError):
                if (old / path.name).exists():
                    (old / path.name).replace(path)
                elif not path.is_dir():
                    path.unlink()
        raise


def _refuse_odd(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "a symbolic link" if path.is_symlink() else "not a plain file"
        raise EnvironmentProblem(f"{path}: found {kind}, expected a plain file or nothing there")


def _stale(folder: Path, files: Collection[str]) -> tuple[list[Path], list[str]]:
    stale, warnings = [], []
    for path in sorted(folder.iterdir()):
        if not _NODE_FILE.fullmatch(path.name) or path.name in files:
            continue
        try:
            if path.is_symlink():
                raise HostProblem("a symbolic link")
            read_hostfile(path)
        except HostProblem:
            warnings.append(f"{path}: kept, because it is not a host file of this command")
        else:
            stale.append(path)
    return stale, warnings


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    if path.read_bytes() != data:
        raise OSError(errno.EIO, "found other bytes than were written", str(path))


def _flush_folder(folder: Path) -> None:
    # Some network file systems do not flush folders; the files themselves are flushed.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    for left in folder.glob(_WORK + "*"):
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=folder))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on the folder itself, where its file system has such locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None and stat.S_ISDIR(os.fstat(handle).st_mode):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EnvironmentProblem(
                    f"{folder}: another run of dsmoe hosts is writing there; wait until it ends"
                ) from None
            except OSError:
                pass
        yield
    finally:
        os.close(handle)
