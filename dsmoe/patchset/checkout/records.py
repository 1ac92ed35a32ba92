"""The lock, the journal of a move under way, and the record of what is applied.

All three live in the git folder of the work tree (``.git/dsmoe``). The lock is a flock whose
descriptor every git child inherits: it outlives a killed applier for as long as its git writes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from dsmoe.common.errors import Busy, EnvironmentProblem
from dsmoe.common.files import write_atomically
from dsmoe.patchset.checkout.open import Checkout
from dsmoe.patchset.tree import Entry

LOCK_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Record:
    """Entries before and after a move, by path (None: no such file).

    ``target`` is "applied" or "pristine"; ``series`` is the digest of the series it belongs to.
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
        data = json.loads(path.read_bytes())
        return Record(
            str(data["target"]),
            str(data["series"]),
            _entries(data["before"]),
            _entries(data["after"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _entries(data: Mapping[str, Any]) -> dict[str, Entry | None]:
    return {
        path: None if item is None else (str(item[0]), str(item[1])) for path, item in data.items()
    }


@dataclass(frozen=True)
class Notes:
    """Paths of the three files for one checkout."""

    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.json"

    @property
    def applied(self) -> Path:
        return self.folder / "applied.json"

    def write(self, path: Path, record: Record) -> None:
        write_atomically(path, record.dump())

    def clear(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


@contextlib.contextmanager
def locked(
    checkout: Checkout,
    say: Callable[[str], None] = lambda text: None,
    wait: float | None = None,
) -> Iterator[int]:
    """Hold the lock of ``checkout``; yields the descriptor that git children must inherit.

    Raises:
        Busy: another applier, or a git it started, still holds it after ``wait`` seconds.
        EnvironmentProblem: the git folder cannot be written.
    """
    path = Notes(checkout.private).lock
    try:
        path.parent.mkdir(exist_ok=True)
        handle = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write in {checkout.git_dir} ({error.strerror}); make the checkout writable"
        ) from None
    try:
        _acquire(handle, path, say, LOCK_WAIT_SECONDS if wait is None else wait)
        yield handle
    finally:
        os.close(handle)


def _acquire(handle: int, path: Path, say: Callable[[str], None], wait: float) -> None:
    deadline = time.monotonic() + wait
    said = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if not said:
            said = True
            say("another applier is at work in this checkout; waiting for it")
        if time.monotonic() > deadline:
            raise Busy(
                f"another applier still holds {path} after {wait:g} s; "
                "wait for it to end, then repeat"
            )
        time.sleep(0.05)


def clear_stale_index_lock(checkout: Checkout) -> None:
    """Remove an ``index.lock`` that our own killed git left; call with the lock held.

    It counts as ours only when a journal is there that is not younger than it.

    Raises:
        Busy: the ``index.lock`` is somebody else's.
    """
    stale = checkout.git_dir / "index.lock"
    journal = Notes(checkout.private).journal
    try:
        age = stale.lstat().st_mtime_ns
    except FileNotFoundError:
        return
    with contextlib.suppress(FileNotFoundError):
        if age >= journal.stat().st_mtime_ns:
            stale.unlink()
            return
    raise Busy(
        f"{stale} exists: another git command is at work there, or one was killed; "
        f"when none runs: rm {stale}"
    )
