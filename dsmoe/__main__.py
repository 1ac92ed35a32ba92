"""``python -m dsmoe``: see cli.py. This file is read by older Pythons too, to refuse them."""

import sys

from dsmoe.common.requires import check_python

check_python("dsmoe")


def main():
    # type: () -> int
    """Run the command line; a Ctrl-C while modules are imported is one line too."""
    try:
        from dsmoe.cli import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted by Ctrl-C\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
