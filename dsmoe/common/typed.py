"""What the user typed to start a command, for the hints in messages."""

from __future__ import annotations

_typed: dict[str, str] = {}


def typed_as(command: str, name: str) -> None:
    """``command`` was started as ``name``, as in "python apply_patch.py"."""
    _typed[command] = name


def program(command: str) -> str:
    """How ``command`` is started: by the script that was typed, else as ``dsmoe COMMAND``."""
    return _typed.get(command, f"dsmoe {command}")
