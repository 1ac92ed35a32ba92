"""Ctrl-C, SIGTERM and SIGHUP as one exception that arrives where nothing can be left behind."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Iterator

from dsmoe.common import startup
from dsmoe.common.errors import DsmoeError

_NUMBERS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def is_importing(frame: FrameType | None) -> bool:
    """Whether ``frame`` is inside an import, through which an exception must not pass.

    C++ of a library may be on the way, and ends the process by abort: torch's does.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class Interrupted(DsmoeError):
    """The run was ended from outside; ``exit_code`` is 128 + the signal, as a shell has it."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        how = " (Ctrl-C)" if number == signal.SIGINT else ""
        super().__init__(f"interrupted by {name}{how}")
        self.exit_code = 128 + number


class StopSignals:
    """A context in which the first of the signals raises :class:`Interrupted`.

    In :meth:`held` it is only noted, and :meth:`check` raises it, so that a process that was just
    started is never lost. After the first signal the others are ignored: ending the processes
    takes a bounded time. Outside of the main thread signals stay as they are.
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._held = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                # A run started with nohup ignores SIGHUP, and stays that way.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, signals wait for :meth:`check`; one that is noted at the end is raised there."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raises :class:`Interrupted` once, if a signal has been noted."""
        if self._noted is not None:
            number, self._noted = self._noted, None
            raise Interrupted(number)

    def forget(self) -> None:
        """From here on no signal counts: what is to be done is known, and takes a bounded time."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)
        self._noted = None

    def listen_again(self) -> None:
        """Take the next signal too, after one that was answered otherwise than by an end."""
        for number in self._previous:
            signal.signal(number, self._arrived)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if is_importing(frame):
            startup.end_at_once(f"error: {Interrupted(number)}\n", 128 + number)
        for other in self._previous:
            signal.signal(other, signal.SIG_IGN)
        if self._held:
            self._noted = number
        else:
            raise Interrupted(number)
