"""The Python blocks of the documentation run as they are pasted, and so does the page on models.

Each block is extracted and run in a process of its own, in an empty folder, in the order of the
page. A shell block is run here where it needs neither a GPU nor other hosts; WHY_NOT has the reason
for every other one, so that a new block is in neither list by accident.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, patched
from support.blocks import blocks, shortened

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOUND = [
    (str(page.relative_to(ROOT)), language, text)
    for page in PAGES
    if page.parent.name != "api"  # signatures, made from the code
    for language, text in blocks(page)
]
# Pages whose blocks take long: they train, generate, or compile.
LONG = ("docs/guide/models.md", "docs/reference/model.md")
# (page, a line of the block) -> why it is not run here
WHY_NOT = {
    ("README.md", line): "make test-wheel runs it: tests/system/install/test_wheel_as_user.py"
    for line in ("make test", "./run_deepspeed_benchmark.sh 1 --suite tuned", "pip install")
}


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    paths = [str(patched.importable()), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


def reason_not_to_run(page: str, text: str) -> str | None:
    found = [why for (where, line), why in WHY_NOT.items() if where == page and line in text]
    return found[0] if found else None


def test_every_reason_belongs_to_a_block() -> None:
    for page, line in WHY_NOT:
        assert any(where == page and line in text for where, _, text in FOUND), (page, line)


RUN = [
    pytest.param(page, marks=pytest.mark.long) if page in LONG else page
    for page in sorted({page for page, *_ in FOUND})
]


@pytest.mark.parametrize("page", RUN)
def test_blocks_run_when_they_are_pasted(page: str, tmp_path: Path) -> None:
    reasons = []
    for where, language, text in FOUND:
        if where != page:
            continue
        reason = reason_not_to_run(page, text)
        if reason:
            reasons.append(reason)
            continue
        if language == "python":
            done = run([sys.executable, "-c", text], tmp_path)
        else:
            typed = f'dsmoe() {{ "{sys.executable}" -m dsmoe "$@"; }}\n' + text
            done = run(["bash", "-eo", "pipefail", "-c", shortened(typed)], tmp_path)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    if reasons and all(reason_not_to_run(page, text) for where, _, text in FOUND if where == page):
        pytest.skip("; ".join(reasons))
