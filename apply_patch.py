#!/usr/bin/env python3
"""``dsmoe apply``: verify that a DeepSpeed checkout is the pinned base, and patch it."""

import sys

from dsmoe.common import startup

if __name__ == "__main__":
    startup.begin()
    from dsmoe.common.packages.requires import check_python

    check_python("apply_patch.py")
    from dsmoe.cli import main

    sys.exit(main(["apply"] + sys.argv[1:], prog="python apply_patch.py"))
