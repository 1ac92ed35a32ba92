#!/usr/bin/env python3
"""Verify that a DeepSpeed checkout is the pinned base, and apply the patch series to it."""

import sys

from dsmoe.patchset.cli import main

if __name__ == "__main__":
    sys.exit(main())
