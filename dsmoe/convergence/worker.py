"""The training process of one arm, which DeepSpeed's launcher starts as it starts a benchmark's.

run.py has what it does."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The launcher starts this file by its path, which puts its own folder first in sys.path.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from dsmoe.benchmark.train.training_process import main

    main("dsmoe.convergence.run")
