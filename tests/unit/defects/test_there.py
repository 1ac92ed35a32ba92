"""The program that another Python runs (there.py) among the modules of its folder."""

from __future__ import annotations

import sys

import pytest

from dsmoe.defects.listing import HERE


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names is of 3.10")
def test_no_module_beside_there_hides_one_of_python() -> None:
    # there.py is run as a program, so its folder comes first on sys.path
    names = {path.stem for path in HERE.glob("*.py")}
    assert not names & set(sys.stdlib_module_names)
