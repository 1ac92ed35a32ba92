"""Output to a reader that may be gone: ``| head``, a closed terminal, a full disk.

A command finishes its work all the same, with the exit code that says so: a run and its row are
not lost because nobody reads the progress any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Any, Iterator, NoReturn

# A pipe's end, a terminal's end, a full disk, a descriptor that is closed.
_LOST = (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EBADF)


class _Patient:
    """A text stream that writes to /dev/null once its reader is gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._or_nowhere():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._or_nowhere():
            self._stream.flush()

    @contextlib.contextmanager
    def _or_nowhere(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _LOST:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def patient_output() -> Iterator[None]:
    """Inside, output may break off; a character that the terminal lacks is written as ``\\xe9``."""
    streams = sys.stdout, sys.stderr
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")
    # Python has None for a stream that was closed before it began, and prints to it nowhere
    patient = [stream and _Patient(stream) for stream in streams]
    sys.stdout, sys.stderr = patient
    try:
        yield
    finally:
        for stream in filter(None, patient):
            stream.flush()
        sys.stdout, sys.stderr = streams


def end_process(code: int) -> NoReturn:
    """End this process with ``code``, all output written.

    gloo's threads can abort an orderly end; see dsmoe/benchmark/train/training.py.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)
