"""What a message says to type next is a command that exists where the user is."""

from __future__ import annotations

import sys

import pytest

from dsmoe.common import typed


@pytest.mark.parametrize(
    ("started", "said"),
    [("/clone/dsmoe/__main__.py", "python3 -m dsmoe plan"), ("/venv/bin/dsmoe", "dsmoe plan")],
)
def test_a_hint_is_typed_as_the_command_was(
    started: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started, "run", "1"])
    assert typed.program("plan") == said


def test_a_script_is_named_as_it_was_typed() -> None:
    typed.typed_as("a-command-of-this-test", "python a_script.py")
    assert typed.program("a-command-of-this-test") == "python a_script.py"
