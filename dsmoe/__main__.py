"""``python -m dsmoe``: see cli.py. This file is read by older Pythons too, to refuse them."""

import sys

from dsmoe.common import startup

if __name__ == "__main__":
    startup.begin()

from dsmoe.common.packages.requires import check_python

check_python("dsmoe")


def main():
    # type: () -> int
    """Run the command line."""
    startup.begin()
    from dsmoe.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
