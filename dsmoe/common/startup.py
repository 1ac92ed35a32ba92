"""What a program does before its first import: Ctrl-C is one line, and no stream is missing.

Older Pythons read this too, to be refused in one line, so it has no annotations.
"""

import contextlib
import os
import signal
import sys

INTERRUPTED = 130
LINE = "error: interrupted by Ctrl-C; repeat the command to go on\n"


def begin():
    # type: () -> None
    """Call it first. Until guard.py takes over, Ctrl-C prints one line and ends the process."""
    # with nohup and in a shell's background Ctrl-C is ignored, and stays that way
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop_at_once)
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
    """Print the line and end the process, without the clean-up of an orderly end."""
    with contextlib.suppress(Exception):  # closed, full, or in the midst of a write
        sys.stdout.flush()
    try:
        os.write(2, LINE.encode("ascii"))
    finally:
        os._exit(INTERRUPTED)
