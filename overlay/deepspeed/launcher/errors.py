"""Expected failures of the launcher: one line without a traceback."""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable


class LaunchError(ValueError):
    """``str(error)`` says what was found, what was expected and what to do."""


class LaunchRefused(LaunchError, SystemExit):
    """Ends a command with status 2, and is the ValueError that a program which calls it expects."""

    def __init__(self, reason: LaunchError) -> None:
        super().__init__(str(reason))
        self.code = 2


def one_line(main: Callable[..., Any]) -> Callable[..., Any]:
    """``main``, with a LaunchError printed as one line on standard error and exit status 2.

    What it raises is a SystemExit and a ValueError: DeepSpeed's own main raises the latter.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except LaunchError as error:
            print(f"deepspeed: error: {error}", file=sys.stderr, flush=True)
            raise LaunchRefused(error) from None

    return wrapped
