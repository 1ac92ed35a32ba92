"""The Python blocks of the documentation run as they are pasted, and so does the page on models.

Each block is extracted and run in a process of its own, in an empty folder, in the order of the
page. A shell block is run here where it needs neither a GPU nor other hosts; WHY_NOT has the reason
for every other one, so that a new block is in neither list by accident.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import patched

ROOT = Path(__file__).resolve().parents[3]
BLOCK = re.compile(r"^```(python|bash|sh|shell)\n(.*?)^```$", re.M | re.S)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOUND = [
    (str(page.relative_to(ROOT)), language, text)
    for page in PAGES
    if page.parent.name != "api"  # signatures, made from the code
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8"))
]
# (page, a line of the block) -> why it is not run here
WHY_NOT = {
    (
        "README.md",
        "make test",
    ): "it runs these tests; tests/system/install/test_setup.py has the set-up",
    ("README.md", "./run_deepspeed_benchmark.sh 1 --suite tuned"): "its cases need a GPU",
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
    blocks = {(page, line) for page, line in WHY_NOT}
    for page, line in blocks:
        assert any(where == page and line in text for where, _, text in FOUND), (page, line)


@pytest.mark.parametrize("page", sorted({page for page, *_ in FOUND}))
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
            # a training of the page's size takes minutes on two cores
            typed = re.sub(r"(?<=--steps )\d+", "2", typed)
            done = run(["bash", "-eo", "pipefail", "-c", typed], tmp_path)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    if reasons and all(reason_not_to_run(page, text) for where, _, text in FOUND if where == page):
        pytest.skip("; ".join(reasons))
