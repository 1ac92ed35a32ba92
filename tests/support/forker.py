"""Imports once what the processes of ranks.Pool need, then forks them: a line on stdin a pool.

Importing torch and DeepSpeed takes five seconds a process. A line is ``FOLDER PROCESSES``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import traceback
from pathlib import Path

import torch

from support import worker

with contextlib.suppress(ImportError):  # torch 1
    import torch._dynamo  # which the first optimizer would import

PROGRAM = str(Path(worker.__file__).resolve())


def become(folder: Path, rank: int, processes: int) -> None:
    """The forked process of ``rank``, which never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(folder / f"log{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    if torch.cuda.device_count():  # CUDA does not outlive a fork
        os.execv(sys.executable, [sys.executable, PROGRAM, str(folder), str(rank), str(processes)])
    worker.serve(folder, rank, processes)


# Each engine collects garbage several times, which must not look at all of torch each time.
gc.collect()
gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies: a process that ended is gone
for line in iter(sys.stdin.readline, ""):
    place, count = line.split()
    for number in range(int(count)):
        if os.fork() == 0:
            try:
                become(Path(place), number, int(count))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)  # gloo's threads can abort an orderly exit
