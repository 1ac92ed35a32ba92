"""The host-file grammar has one home, overlay/, and dsmoe reads it without DeepSpeed."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from support import ROOT

from dsmoe.common import overlay_modules
from dsmoe.hosts import host

FILE = "deepspeed/launcher/host_grammar.py"


def test_it_imports_the_standard_library_alone() -> None:
    """Also on Python 3.8, by whose syntax the file is parsed."""
    text = (ROOT / "overlay" / FILE).read_text()
    tree = ast.parse(text, feature_version=(3, 8))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or ""))
    assert imported == {"__future__", "re"}


def test_it_is_loaded_once_and_is_the_one_in_use() -> None:
    found = overlay_modules.load(FILE)
    assert found is overlay_modules.load(FILE) is host.grammar
    assert found.__file__ == str(ROOT / "overlay" / FILE)
    with pytest.raises(FileNotFoundError):
        overlay_modules.load("deepspeed/launcher/absent.py")


def test_dsmoe_needs_no_deepspeed_for_it() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "sys.modules['deepspeed'] = sys.modules['torch'] = None\n"
        "from dsmoe.hosts.hostfile import parse_hostfile\n"
        "print(parse_hostfile(b'n1 slots=4\\n', 'x'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[Host(name='n1', slots=4)]\n", done.stderr
