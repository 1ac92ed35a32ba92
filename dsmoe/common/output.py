"""Output to a reader that may leave: ``| head``, a killed ``tee``, a terminal that is gone.

A command finishes what it was asked all the same, with the exit code that says so: a run is not
lost, nor its row, because nobody reads its progress any more.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from typing import Any, Callable, Iterator, TypeVar

Main = TypeVar("Main", bound=Callable[..., int])


class _Patient:
    """A text stream that goes on into nothing once its reader has left."""

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
            if error.errno not in (errno.EPIPE, errno.EIO):  # a pipe's end; a terminal's
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def needs_no_reader(main: Main) -> Main:
    """Decorates a front door: its output may break off, the work goes on."""

    @functools.wraps(main)
    def wrapped(*arguments: Any, **keywords: Any) -> int:
        streams = sys.stdout, sys.stderr
        # Python has None for a stream that was closed before it began, and prints to it nowhere
        patient = [stream and _Patient(stream) for stream in streams]
        sys.stdout, sys.stderr = patient
        try:
            return main(*arguments, **keywords)
        finally:
            for stream in filter(None, patient):
                stream.flush()
            sys.stdout, sys.stderr = streams

    return wrapped  # type: ignore[return-value]
