"""The training process of one arm, started by DeepSpeed's launcher as train/process.py is; run.py
has what it does."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The launcher starts this file by its path, which puts its own folder first in sys.path.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from dsmoe.benchmark.train.process import main

    main("dsmoe.convergence.run")
