"""A kill between two lines of Python, in a forked child."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Callable, Collection


def run_until(action: Callable[[], object], line: int, files: Collection[str]) -> int:
    """Run ``action`` in a forked child that kills itself at the ``line``-th line it executes.

    Counts the lines of ``files``; returns how many were executed when the child came to its end,
    else 0.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame: Any, event: str, arg: object) -> Any:
            nonlocal count
            if frame.f_code.co_filename not in files:
                return None
            if event == "line":
                count += 1
                if count == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            action()
            sys.settrace(None)
            os.write(writer, str(count).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return int(text or 0)
