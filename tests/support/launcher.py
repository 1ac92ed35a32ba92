"""The launcher as ``dsmoe run`` starts it: without torch, whose import takes seconds a process."""

from __future__ import annotations

import sys

from support import patched


def lean_runner(*words: str) -> list[str]:
    """The command line of ``ds WORDS``."""
    return [*lean_launch(), "runner", *words]


def lean_launch(*words: str) -> list[str]:
    """The command line of ``python -m deepspeed.launcher.launch WORDS``."""
    lean = patched.importable() / "deepspeed" / "launcher" / "lean.py"
    return [sys.executable, str(lean), *words]
