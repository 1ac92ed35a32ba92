"""Fetching the release's archive leaves the process as it was."""

from __future__ import annotations

import subprocess
import sys

from support import ROOT


def test_asking_for_pip_leaves_setuptools_importable() -> None:
    """The tests build the checkout and import DeepSpeed, with its setuptools, in one process."""
    code = (
        "from dsmoe.patchset.sources.archive import importable\n"
        "assert importable('pip') and not importable('no_such_package')\n"
        "import setuptools, sys\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
