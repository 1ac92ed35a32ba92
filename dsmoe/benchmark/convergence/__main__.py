"""``python -m dsmoe.benchmark.convergence``; cli.py has the command."""

import sys

from dsmoe import interpreter

if __name__ == "__main__":
    interpreter.need("torch", "numpy", "rich")
    from dsmoe.benchmark.convergence.cli import main

    sys.exit(main())
