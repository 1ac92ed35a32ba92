"""How far the tokenizing is: a bar in a terminal, a line every ten seconds anywhere else."""

from __future__ import annotations

import sys
import time
from typing import Any

SECONDS = 10.0


class Tokenizing:
    """A context; :meth:`at` says how many of ``total`` bytes of the files are read."""

    def __init__(self, total: int) -> None:
        self._total, self._last = total, time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Tokenizing:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(file=sys.stderr), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("tokenizing", total=self._total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, read: int) -> None:
        """``read`` bytes are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=read)
        elif time.monotonic() - self._last >= SECONDS:
            self._last = time.monotonic()
            share = f"{read / max(1, self._total):.0%} of {self._total / 1e6:,.0f} MB"
            print(f"  tokenizing: {share}", file=sys.stderr, flush=True)
