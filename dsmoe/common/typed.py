"""What the user typed to start a command, for the hints in messages."""

from __future__ import annotations

import sys
from pathlib import Path

_typed: dict[str, str] = {}


def typed_as(command: str, name: str) -> None:
    """``command`` was started as ``name``, as in "python apply_patch.py"."""
    _typed[command] = name


def program(command: str) -> str:
    """How ``command`` is started: by the script that was typed, else as ``dsmoe COMMAND``.

    In a clone without an installation that is ``python3 -m dsmoe COMMAND``, as this process was.
    """
    as_module = Path(sys.argv[0]).name == "__main__.py"
    return _typed.get(command, f"{'python3 -m ' if as_module else ''}dsmoe {command}")
