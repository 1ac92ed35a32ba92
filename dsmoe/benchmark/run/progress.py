"""What a person sees while a run goes on: a bar in a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Any, TextIO

PLAIN_SECONDS = 10


class Progress:
    """A context in which each iteration moves the bar on.

    ``total`` iterations of ``tokens`` tokens each. Outside a terminal a line is printed at the
    first and last iteration and every ten seconds between, with ``time_left`` if that is asked for.
    ``done`` iterations are finished when it begins.
    """

    def __init__(
        self,
        total: int,
        tokens: int,
        out: TextIO | None = None,
        done: int = 0,
        time_left: bool = False,
    ) -> None:
        self.total = total
        self.done = done
        self.time_left = time_left
        self.tokens = tokens
        self.out = sys.stdout if out is None else out
        self._last = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.out.isatty():
            self._open_bar()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def iteration(self, line: dict[str, Any]) -> None:
        """Show one line of ``iterations.jsonl``."""
        words = f"loss {line['cross_entropy']:.3f}  {self.tokens / line['seconds']:,.0f} tokens/s"
        number = line["iteration"]
        if self._bar is not None:
            self._bar.update(self._task, completed=number, words=words)
            return
        now = time.monotonic()
        if number in (1, self.total) or now - self._last >= PLAIN_SECONDS:
            self._last = now
            if self.time_left:
                left = (self.total - number) * line["seconds"]
                words += f"  {timedelta(seconds=round(left))} left"
            print(f"  iteration {number}/{self.total}  {words}", file=self.out, flush=True)

    def note(self, words: str) -> None:
        """Show one line that the bar does not wipe out."""
        if self._bar is not None:
            self._bar.console.print(f"note: {words}", markup=False, highlight=False)
        else:
            print(f"  note: {words}", file=self.out, flush=True)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}"),
            TimeRemainingColumn(),
            console=Console(file=self.out),
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "training", total=self.total, completed=self.done, words="starting"
        )
