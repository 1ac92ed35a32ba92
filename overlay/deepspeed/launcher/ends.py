"""Which training process of a host failed first, said in one line.

launch.py looks at its processes once a second. By then the others have often failed too, because
they lost the first one; so a thread waits for each process, and the order of the ends is known.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import Sequence

# Ends this close together count as one event, in which the killed process is the cause.
GRACE_SECONDS = 0.2


class Ends:
    """Watches the processes of ``host``, a name for the message."""

    def __init__(self, host: str) -> None:
        self._host = host
        # Reentrant: a signal's handler may run in the midst of a method.
        self._lock = threading.RLock()
        self._ranks: dict[subprocess.Popen[bytes], int] = {}
        self._failed: list[subprocess.Popen[bytes]] = []
        self._told = False

    def watch(self, processes: Sequence[subprocess.Popen[bytes]], ranks: Sequence[int]) -> None:
        """Watch ``processes``, whose global ranks are ``ranks``; once all of them are started.

        A thread that runs while a process is forked could leave the new one a lock that is held.
        """
        self._ranks.update(zip(processes, ranks))
        for process in processes:
            threading.Thread(target=self._wait, args=(process,), daemon=True).start()

    def stop(self) -> None:
        """Say who failed, where one has; then what ends is ended by us and is not reported."""
        if not self._told and any(process.returncode for process in self._ranks):
            time.sleep(GRACE_SECONDS)
            self._tell()
        self._told = True

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait() == 0:
            return
        with self._lock:
            self._failed.append(process)
            first = len(self._failed) == 1
        if first:
            time.sleep(GRACE_SECONDS)
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            if self._told:
                return
            self._told = True
            late = [p for p in self._ranks if p.returncode and p not in self._failed]
            failed = self._failed + late
            # An abort is often the answer to another's end, as of NCCL's watchdog.
            killed = [p for p in failed if p.returncode < 0 and p.returncode != -signal.SIGABRT]
            process = (killed or failed)[0]
            who = f"rank {self._ranks[process]} on {self._host} (process {process.pid})"
        line = f"deepspeed: error: {who} {_how(process.returncode)}\n"
        try:
            os.write(2, ("\n" + line).encode("utf-8", "replace"))
        except OSError:
            return


def _how(code: int) -> str:
    if code > 0:
        return f"ended with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"was killed by signal {-code} ({name})"
