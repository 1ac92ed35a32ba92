"""Puts patch/, overlay/ and bases/ into the package, as dsmoe/_data; the rest is pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
DATA = ("patch", "overlay", "bases")


class WithData(build_py):  # type: ignore[misc]  # setuptools takes it from distutils, untyped
    """build_py that also copies the project's data, byte for byte and with file modes."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return  # an editable install reads the source tree's own folders
        target = Path(self.build_lib) / "dsmoe" / "_data"
        shutil.rmtree(target, ignore_errors=True)
        junk = shutil.ignore_patterns("__pycache__", "*.pyc", ".export", ".DS_Store")
        for name in DATA:
            shutil.copytree(str(HERE / name), str(target / name), symlinks=True, ignore=junk)


setup(cmdclass={"build_py": WithData})
