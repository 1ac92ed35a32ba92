"""Where a training process is, for the reason of a failure and for the log of one that hangs."""

from __future__ import annotations

import faulthandler
from dataclasses import dataclass


@dataclass
class Stage:
    """What this process is doing, in ``words``."""

    words: str = "while torch and DeepSpeed are imported"

    def enter(self, words: str, seconds: float = 0.0) -> None:
        """A new stage. With ``seconds``, the limit after which the front door ends the run, every
        thread's stack goes to the log a little before."""
        self.words = words
        if seconds:
            faulthandler.dump_traceback_later(0.9 * seconds, exit=False)
