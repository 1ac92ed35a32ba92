"""``python -m dsmoe.convergence``; cli.py has the command."""

import sys

from dsmoe.common import interpreter

if __name__ == "__main__":
    interpreter.need("torch", "numpy", "rich")
    from dsmoe.convergence.cli import main

    sys.exit(main())
