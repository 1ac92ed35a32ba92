"""A page in headless Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom")


def found() -> str | None:
    """The browser, where there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def dumped(page: Path, *options: str) -> str:
    """The document of ``page`` after its scripts have run; skips the test without a browser."""
    program = found()
    if program is None:
        pytest.skip("needs Chromium (Debian: chromium); make test-report")
    profile = f"--user-data-dir={page.with_suffix('.profile')}"
    words = [program, *OPTIONS, profile, *options, page.as_uri()]
    return subprocess.run(words, capture_output=True, text=True, timeout=300).stdout
