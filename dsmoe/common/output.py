"""Output to a reader that may be gone: ``| head``, a closed terminal, a full disk.

A command finishes its work all the same, with the exit code that says so: a run and its row are
not lost because nobody reads the progress any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, NoReturn

# A pipe's end, a terminal's end, a full disk, a descriptor that is closed.
_LOST = (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EBADF)


class _Patient:
    """A text stream that writes to /dev/null once its reader is gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: OSError | None = None

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
            self.lost = self.lost or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class PatientOutput:
    """Standard output and error while :func:`patient_output` holds."""

    def __init__(self, out: _Patient, closed: bool) -> None:
        self._out = out
        self._closed = closed

    def why_lost(self) -> str | None:
        """Why standard output did not take all that was printed; None if it did.

        A reader that closed its pipe has what it wanted: that is no reason.
        """
        if self._closed:
            return "it is closed"
        self._out.flush()
        lost = self._out.lost
        return None if lost is None or lost.errno == errno.EPIPE else str(lost.strerror)


@contextlib.contextmanager
def patient_output() -> Iterator[PatientOutput]:
    """Inside, output may break off; a character that the terminal lacks is written as ``\\xe9``."""
    streams = sys.stdout, sys.stderr
    for stream in streams:
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")
    with contextlib.ExitStack() as opened:
        # Python has None for a stream that was closed before it began
        there = [
            stream or opened.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            for stream in streams
        ]
        patient = [_Patient(stream) for stream in there]
        sys.stdout, sys.stderr = patient
        try:
            yield PatientOutput(patient[0], closed=streams[0] is None)
        finally:
            for stream in patient:
                stream.flush()
            sys.stdout, sys.stderr = streams


def line_printer(json: bool = False) -> Callable[[str], None]:
    """What prints how far a command is, at once: with ``json`` to standard error, for standard
    output is the result then."""

    def say(line: str) -> None:
        print(line, file=sys.stderr if json else sys.stdout, flush=True)

    return say


def escaped(text: str) -> str:
    """``text`` on one line, of characters that a terminal shows and does not obey.

    Line ends become blanks; control characters and bytes of a name that are no text are written
    by their numbers, as in ``\\x1b``.
    """
    line = " ".join(part.strip() for part in text.splitlines()) if "\n" in text else text
    if line.isprintable():
        return line
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line
    )


class ProcessEnd(BaseException):
    """The command is done, and the process ends without Python's clean-up; see end_process."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def end_process(code: int) -> NoReturn:
    """End the command with ``code``, and then this process, as soon as all output is written.

    gloo's threads can abort an orderly end; see dsmoe/benchmark/train/training.py. guard.py does
    it, which first sees whether standard output took the JSON of ``--json``.
    """
    raise ProcessEnd(code)
