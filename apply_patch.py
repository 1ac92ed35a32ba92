#!/usr/bin/env python3
"""Verify that a DeepSpeed checkout is the pinned base, and apply the patch series to it."""

import sys

from dsmoe.common.requires import check_python

if __name__ == "__main__":
    check_python("apply_patch.py")
    from dsmoe.common.interpreter import need

    need("git")
    from dsmoe.commands.apply import main

    sys.exit(main())
