"""Expected failures of the launcher: one line without a traceback."""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable


class LaunchError(ValueError):
    """``str(error)`` says what was found, what was expected and what to do."""


def one_line(main: Callable[..., Any]) -> Callable[..., Any]:
    """``main``, with a LaunchError printed as one line on standard error and exit status 2."""

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except LaunchError as error:
            print(f"deepspeed: error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)

    return wrapped
