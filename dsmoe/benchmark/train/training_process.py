"""One training process of a benchmark run; training.py has what it does.

Started by DeepSpeed's launcher, once a device::

    deepspeed --num_gpus 2 dsmoe/benchmark/train/training_process.py --run-dir FOLDER

FOLDER holds ``case.json`` and ``deepspeed.json`` (run/folder.py); rank 0 writes an iteration a
line and, at the end, ``outcome.json``. How the process ended is one line of its output (marks.py).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import threading
import traceback
from pathlib import Path


def main(work: str = "dsmoe.benchmark.train.training") -> None:
    """``work``: the module whose ``train_whole`` does the training."""
    # The launcher starts this file by its path, which puts its own folder first in sys.path.
    sys.path[0] = str(Path(__file__).resolve().parents[3])
    from dsmoe.benchmark.run import marks
    from dsmoe.benchmark.train.failure import Stage, explain
    from dsmoe.benchmark.train.kernels_ahead import start_kernels
    from dsmoe.common.errors import DsmoeError

    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--run-dir", type=Path, required=True, help="folder with case.json")
    parser.add_argument("--watched", action="store_true", help="end with standard input")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    options = parser.parse_args()
    rank, stage = int(os.environ.get("RANK", "0")), Stage()
    marks.say(rank, marks.STARTED)
    if options.watched:
        threading.Thread(target=end_with_standard_input, daemon=True).start()
    start_kernels(options.run_dir, options.local_rank)
    try:
        # Here, so that an import that fails is a reason like any other.
        module = importlib.import_module(work)
        # DeepSpeed collects garbage several times a start, which need not look at all of torch.
        gc.freeze()
        module.train_whole(options.run_dir, stage)
    except BaseException as error:
        if not isinstance(error, DsmoeError):
            traceback.print_exc()
        marks.say(rank, *explain(error, stage.whole))
        # At once: other ranks may be waiting in a collective, which the lost connection ends.
        os._exit(error.exit_code if isinstance(error, DsmoeError) else 1)


def end_with_standard_input() -> None:
    """End this process when the command is gone: it holds the other end of standard input."""
    while os.read(0, 1):
        pass
    os._exit(143)


if __name__ == "__main__":
    main()
