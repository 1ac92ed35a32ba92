#!/usr/bin/env python3
"""``dsmoe hosts``: write the launcher's host files for the cluster at hand."""

import sys

from dsmoe.common import startup

if __name__ == "__main__":
    startup.begin()
    from dsmoe.common.packages.requires import check_python

    check_python("get_hostfiles.py")
    from dsmoe.cli import main

    sys.exit(main(["hosts"] + sys.argv[1:], prog="python get_hostfiles.py"))
