"""A keeper as a process of its own, started by its path with the launcher's name; see keeper.py."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started by its path, which puts its own folder first in sys.path.
    sys.path[0] = str(Path(__file__).resolve().parents[4])
    from dsmoe.benchmark.launchers.kept.keeper import main

    sys.exit(main(sys.argv[1]))
