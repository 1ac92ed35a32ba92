"""Times one operation on a device, and keeps every row as soon as it is there."""

from __future__ import annotations

import json
import statistics
import time
from typing import IO, Any, Callable

#: Seconds that one operation is timed, over its windows.
BUDGET = 0.06
WINDOWS = 3


class Clock:
    """Rows of ``out``, a line of JSON each, until ``deadline`` (time.monotonic).

    A row has what was measured (``kind``, ``name``, sizes, ``dtype``), ``ms`` (the median window),
    ``least_ms``, ``n`` calls in all, and how many ``processes`` measured at that time. A
    measurement that fails has ``error`` instead, and the others go on.
    """

    def __init__(self, out: IO[str], device: Any, deadline: float, processes: int) -> None:
        import torch

        self.torch, self.out, self.device, self.deadline = torch, out, device, deadline
        self.cuda = device.type == "cuda"
        self.processes = processes

    def late(self) -> bool:
        """Whether the time for all measurements is used up."""
        return time.monotonic() > self.deadline

    def row(self, **values: Any) -> None:
        """Write one row, whole, now."""
        self.out.write(json.dumps({**values, "processes": self.processes}) + "\n")
        self.out.flush()

    def measure(
        self,
        make: Callable[[], Callable[[], object]],
        what: dict[str, Any],
        budget: float = BUDGET,
    ) -> None:
        """Time the function that ``make`` returns, and write a row: ``what`` and the figures."""
        if self.late():
            self.row(**what, error="left out: the time for all measurements is used up")
            return
        try:
            timed = self._windows(make(), budget)
        except Exception as error:  # whatever a card cannot do costs this rate alone
            self.row(**what, error=f"{type(error).__name__}: {error}"[:300])
            self.free()
            return
        ms = statistics.median(timed[0])
        self.row(**what, ms=ms, least_ms=min(timed[0]), n=timed[1])

    def free(self) -> None:
        """Give back what the allocator keeps."""
        if self.cuda:
            try:
                self.torch.cuda.empty_cache()
            except Exception as error:  # a device that is lost says so in every row
                self.row(kind="note", error=f"{type(error).__name__}: {error}"[:300])

    def wait(self) -> None:
        """Until the device has finished."""
        if self.cuda:
            self.torch.cuda.synchronize()

    def _windows(self, call: Callable[[], object], budget: float) -> tuple[list[float], int]:
        call()
        self.wait()
        begin = time.perf_counter()
        call()
        self.wait()
        once = max(time.perf_counter() - begin, 1e-6)
        calls = int(min(max(1, budget / WINDOWS / once), 2000))
        found = []
        for _ in range(WINDOWS):
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            self.wait()
            found.append((time.perf_counter() - begin) * 1000 / calls)
        return found, calls * WINDOWS
