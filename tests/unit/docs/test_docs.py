"""The documentation: made pages are up to date, links lead somewhere, README blocks work."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT

from dsmoe.cli import COMMANDS
from dsmoe.common.errors import EXIT_CODES


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_pages_made_from_the_code_are_up_to_date() -> None:
    done = script("scripts/make_reference.py", "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_every_exit_code_has_a_row() -> None:
    text = (ROOT / "docs/reference/exit-codes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", text, re.MULTILINE))
    assert rows == {str(code): words for code, words in EXIT_CODES.items()}


def test_links_paths_commands_and_words() -> None:
    done = script("scripts/check_docs.py")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[here](missing.md)", "leads nowhere"),
        ("[here](#no-such-heading)", "a heading that is not there"),
        ("[here](/docs/index.md)", "leads nowhere"),
        ("http://localhost:8000/guide", "an address of one machine"),
        ("`tests/missing.py`", "is not there"),
        ("python -m dsmoe.patchset.authoring.lint", "is a module path"),
        ("the patch mends it", "in plain words"),
    ],
)
def test_what_the_check_finds(line: str, problem: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{line}\n", encoding="utf-8")
    [found] = load("check_docs").problems(page)
    assert problem in found


def test_a_link_to_a_heading_is_accepted(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title: with `code`\n\n[here](#a-title-with-code)\n", encoding="utf-8")
    assert list(load("check_docs").problems(page)) == []


def test_readme_blocks_can_be_pasted() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(lines) >= 6
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in filter(None, lines):
        assert "…" not in line and "<" not in line, line
        words = line.split()
        if words[0] == "make":
            assert words[1] in targets
        elif "-m dsmoe" in line:
            assert line.split("-m dsmoe ")[1].split()[0] in COMMANDS
        elif words[0] == "dsmoe":
            assert words[1] in COMMANDS
        elif line.startswith("pip install "):
            assert "dist/dsmoe-*.whl" in line  # what make dist writes
        else:
            assert (ROOT / words[0]).is_file(), line


def test_figures_of_the_readme_are_those_of_the_notebook() -> None:
    notebook = (ROOT / "docs/lab/performance.md").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "docs/lab/throughput.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) >= 6
    for row in rows:
        assert re.search(rf"(?<![\d,]){row['tokens_per_second']:,}(?![\d,])", notebook), row
        # an iteration has 1024 sequences of 1024 tokens
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(2**20, rel=0.005)
    measured = [float(n) for n in re.findall(r"(?<![\d.,])\d+\.\d+(?![\d.,]*\d)", notebook)]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| [\d.]+[MB] \|.*$", readme, re.MULTILINE)
    shown = [n for line in table for n in re.findall(r"\d+\.\d+(?!B)", line)]
    assert len(shown) >= 10
    for number in shown:
        digits = len(number.split(".")[1])
        assert any(round(value, digits) == float(number) for value in measured), number
