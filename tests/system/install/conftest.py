"""The wheel of this source tree, built once."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

SOURCES = ("dsmoe", "patch", "overlay", "bases", "setup.py", "pyproject.toml", "MANIFEST.in")
TEXTS = ("README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip from a copy of the sources, without the network."""
    top = tmp_path_factory.mktemp("wheel")
    source = top / "source"
    source.mkdir()
    junk = shutil.ignore_patterns("__pycache__", ".export")
    for name in (*SOURCES, *TEXTS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=junk)
        else:
            shutil.copy2(ROOT / name, source / name)
    needed = ("pip", "setuptools", "wheel")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"building a wheel offline needs {', '.join(missing)} here")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-w", str(top))
    words = [sys.executable, "-m", "pip", "wheel", "-q", *options, str(source)]
    done = subprocess.run(words, cwd=top, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(top.glob("dsmoe-*.whl"))
