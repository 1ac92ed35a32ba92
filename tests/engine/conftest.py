"""Modules of this folder import DeepSpeed, so it is made importable before they are collected."""

from __future__ import annotations

import pytest
from support import patched, ranks

patched.importable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After the last test of this folder its processes have no more to do."""
    if nextitem is None or "tests/engine" not in nextitem.nodeid:
        ranks.close_all()
