#!/usr/bin/env python3
"""Write the launcher's host files for this cluster; the manual is docs/reference/hostfiles.md."""

import sys

from dsmoe.common.requires import check_python

if __name__ == "__main__":
    check_python("get_hostfiles.py")
    from dsmoe.commands.hosts import main

    sys.exit(main(sys.argv[1:]))
