"""Imports once what the processes of ranks.Pool need, then forks them: a line a pool.

Importing torch and DeepSpeed takes five seconds a process. ``python forker.py PLACE`` reads lines
``FOLDER PROCESSES`` from the FIFO ``PLACE/calls`` until nobody can write there, and removes PLACE.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
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
    calls.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(folder / f"log{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    if torch.cuda.device_count():  # CUDA does not outlive a fork
        os.execv(sys.executable, [sys.executable, PROGRAM, str(folder), str(rank), str(processes)])
    worker.serve(folder, rank, processes)


# not waiting for a writer: where none is left, there is nothing to read
calls = os.fdopen(os.open(f"{sys.argv[1]}/calls", os.O_RDONLY | os.O_NONBLOCK))
os.set_blocking(calls.fileno(), True)
# Each engine collects garbage several times, which must not look at all of torch each time.
gc.collect()
gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies: a process that ended is gone
for line in iter(calls.readline, ""):
    place, count = line.split()
    for number in range(int(count)):
        if os.fork() == 0:
            try:
                become(Path(place), number, int(count))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)  # gloo's threads can abort an orderly exit
shutil.rmtree(sys.argv[1], ignore_errors=True)
Path(f"{sys.argv[1]}.lock").unlink()
