"""One process at a time in a checkout.

The lock is a flock on a file in the git folder; every git child inherits its descriptor, so that
it outlives a killed applier for as long as its git writes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Callable, Iterator

from dsmoe.common.errors import Busy, EnvironmentProblem
from dsmoe.common.files import remove_left_over
from dsmoe.patchset.checkout.open import Checkout
from dsmoe.patchset.checkout.records import Records

LOCK_WAIT_SECONDS = 30.0


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
    path = checkout.private / "lock"
    try:
        path.parent.mkdir(exist_ok=True)
        handle = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write in {checkout.git_dir} ({error.strerror}); make the checkout writable"
        ) from None
    try:
        _acquire(handle, path, say, LOCK_WAIT_SECONDS if wait is None else wait)
        remove_left_over(path.parent)
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

    It counts as ours only when a journal, or the note of an export, is there that is not younger
    than it.

    Raises:
        Busy: the ``index.lock`` is somebody else's.
    """
    stale = checkout.git_dir / "index.lock"
    records = Records(checkout.private)
    try:
        age = stale.lstat().st_mtime_ns
    except FileNotFoundError:
        return
    for record in (records.journal, records.exported):
        with contextlib.suppress(FileNotFoundError):
            if age >= record.stat().st_mtime_ns:
                stale.unlink()
                return
    raise Busy(
        f"{stale} exists: another git command is at work there, or one was killed; "
        f"when none runs: rm {stale}"
    )
