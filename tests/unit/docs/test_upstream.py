"""docs/upstream: every defect that lives in the newest release has a reproduction to be sent."""

from __future__ import annotations

import ast
import re

import pytest
from support import ROOT

from dsmoe.defects import listing, releases

FOLDER = ROOT / "docs" / "upstream"
FILES = sorted(FOLDER.glob("*.py"))
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \| `(\w+\.py)` \| (\d) \|", TEXT, re.MULTILINE)


def test_every_live_defect_has_a_file_or_a_reason() -> None:
    newest = list(releases.read().values())[-1]
    live = [p.number for p in listing.proofs() if releases.state_of(newest, p) == "lives"]
    left_out = re.findall(r"^- (\d+):", TEXT.split("## Left out")[1], re.MULTILINE)
    assert sorted([int(row[0]) for row in ROWS] + [int(n) for n in left_out]) == sorted(live)


def test_the_table_lists_the_folder() -> None:
    assert sorted(row[1] for row in ROWS) == [file.name for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_reproduction_is_short_and_needs_nothing_of_this_project(file) -> None:  # type: ignore[no-untyped-def]
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    compile(tree, str(file), "exec")
    assert len(text.splitlines()) <= 40
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] in ("dsmoe", "tests", "support")]
    assert any(name.split(".")[0] == "deepspeed" for name in names) or "deepspeed.launcher" in text
    assert ast.get_docstring(tree) and "right:" in text and "sys.exit(" in text
