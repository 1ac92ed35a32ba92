"""The benchmark: suites, text data, result rows, FLOP formulas, the table after a run."""

import sys

from dsmoe.requires import check_python

check_python("dsmoe.benchmark")  # this file is read by older Pythons too, to refuse them

if sys.argv[0] == "-m":  # python -m dsmoe.benchmark.X: the package is read before its module
    from dsmoe.interpreter import need

    need("filelock", "git", "numpy", "psutil")
