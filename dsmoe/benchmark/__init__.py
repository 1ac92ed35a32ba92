"""The benchmark: suites, text data, result rows, FLOP formulas, the table after a run."""

import sys

if sys.argv[0] == "-m":  # python -m dsmoe.benchmark…: the package is read before its module
    from dsmoe.interpreter import need

    need("filelock", "git", "numpy", "psutil")
