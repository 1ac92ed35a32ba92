"""Where a training process is, and why it failed, from the exception that ended it, in one line."""

from __future__ import annotations

import errno
import faulthandler
import math
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Callable

from dsmoe.benchmark.run.marks import FAILED, LOST_PEER, WHERE, say
from dsmoe.common.errors import DsmoeError

WATCH_SECONDS = 0.2
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|CUBLAS_STATUS_AL")
_PORT = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
_PEER = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket timeout|timed out|"
    r"remote process exited|nccl (communicator was aborted|error)|recvValue failed",
    re.IGNORECASE,
)
_COMMUNICATION = re.compile(r"gloo|nccl|c10d|store|Dist\w*Error", re.IGNORECASE)


def _nothing() -> str:
    return ""


@dataclass
class Stage:
    """What this process is doing, in ``words``; ``detail()`` adds what a pipeline is doing."""

    words: str = "while torch and DeepSpeed are imported"
    detail: Callable[[], str] = field(default=_nothing)
    _alarm: float = field(default=math.inf)

    @property
    def whole(self) -> str:
        """Words and detail."""
        return " ".join(filter(None, [self.words, self.detail()]))

    def enter(self, words: str, seconds: float = 0.0) -> None:
        """A new stage. With ``seconds``, the limit after which the command ends the run, every
        thread's stack goes to the log a little before."""
        self.words = words
        self._alarm = time.monotonic() + 0.8 * seconds if seconds else math.inf
        if seconds:
            faulthandler.dump_traceback_later(0.9 * seconds, exit=False)

    def watch(self, rank: int) -> None:
        """From now on tell the command where this process is when a limit is near."""
        threading.Thread(target=self._watch, args=(rank,), daemon=True).start()

    def _watch(self, rank: int) -> None:
        while True:
            time.sleep(WATCH_SECONDS)
            if time.monotonic() > self._alarm:
                self._alarm = math.inf
                say(rank, WHERE, self.detail())


def explain(error: BaseException, stage: str) -> tuple[str, str]:
    """(kind, reason) of ``error``: kind as in marks.py. ``stage`` is e.g. ``at iteration 3``."""
    if isinstance(error, DsmoeError):
        return FAILED, str(error)
    name = type(error).__name__
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or _MEMORY.search(text):
        return FAILED, (
            f"out of memory {stage}: {text[:200]}; use smaller micro-batches "
            "(--micro-batch-size), --remat, or more GPUs"
        )
    full = _full_disk(error)
    if full is not None:
        where = full.filename or "the output folder"
        return FAILED, f"the disk is full {stage}: {where}: {full.strerror}; free some space"
    if _PORT.search(text):
        return FAILED, (
            f"the port of the process group is taken by another program ({text[:160]}); run again, "
            "or name a free one with --port"
        )
    if _PEER.search(text) and _COMMUNICATION.search(f"{name} {text}"):
        return LOST_PEER, f"{name} {stage}: {text[:120]}"
    return FAILED, f"{name} {stage}: {text[:300]}"


def _full_disk(error: BaseException | None) -> OSError | None:
    """The error of a full disk that ``error`` is, or came from: torch.save puts its own over it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return error
        error = error.__cause__ or error.__context__
    return None
