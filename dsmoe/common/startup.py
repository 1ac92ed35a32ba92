"""What a program does before its first import: Ctrl-C is one line, and no stream is missing.

Older Pythons read this too, to be refused in one line, so it has no annotations. It imports only
what Python has loaded by then (signal would load enum): until ``begin`` was called, Python itself
answers a Ctrl-C, with a traceback of its own start.
"""

import os
import sys

try:
    import _signal  # type: ignore[import-not-found]
except ImportError:  # Python 2
    import signal as _signal

INTERRUPTED = 130
LINE = "error: interrupted by Ctrl-C; repeat the command to go on\n"


def begin():
    # type: () -> None
    """Call it first. Until guard.py takes over, Ctrl-C prints one line and ends the process."""
    # with nohup and in a shell's background Ctrl-C is ignored, and stays that way
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, stop_at_once)
    open_streams()


def open_streams():
    # type: () -> None
    """Connect a closed standard stream to /dev/null.

    Otherwise the next file that is opened gets its number, and a child process writes into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)
            if hasattr(os, "set_inheritable"):
                os.set_inheritable(handle, True)


def stop_at_once(*_):
    # type: (object) -> None
    """As Ctrl-C in :func:`end_at_once`."""
    end_at_once(LINE, INTERRUPTED)


def end_at_once(line, code):
    # type: (str, int) -> None
    """Print ``line`` and end the process, without the clean-up of an orderly end."""
    try:
        sys.stdout.flush()
    except Exception:
        pass
    try:
        os.write(2, line.encode("ascii"))
    finally:
        os._exit(code)
