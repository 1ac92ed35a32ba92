#!/usr/bin/env python3
"""Write the launcher's host files for the cluster at hand: see ``--help`` and docs/hostfiles.md."""

from __future__ import annotations

import sys

from dsmoe.hosts.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
