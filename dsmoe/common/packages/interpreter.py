"""Start again with the Python of ``.venv``, where this one lacks what the project needs.

``./run_deepspeed_benchmark.sh`` makes ``.venv`` in the project's folder; a user may type the other
commands with any ``python``. If that one lacks a package and ``.venv`` exists, the command starts
again in ``.venv``; otherwise one line says what to install.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from dsmoe.common.packages import dependencies
from dsmoe.common.places import installed, project_root

EXIT_CODE = 8
_AGAIN = "DSMOE_STARTED_AGAIN"


def need(*packages: str) -> None:
    """Return if ``packages`` can be imported; call it when started as a program.

    Ends the process with one line and exit code 8 if no Python here can import them.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing:
        return
    start_again()
    print(
        f"error: {sys.executable} cannot import {', '.join(missing)}; expected what dsmoe needs "
        f"for a run: {_remedy(_venv_python())}",
        file=sys.stderr,
    )
    sys.exit(EXIT_CODE)


def start_again() -> None:
    """Start this command again in ``.venv``; returns where that is not there, or is this one."""
    python = _venv_python()
    words = getattr(sys, "orig_argv", None)  # Python 3.10 on: the command as it was typed
    if words is None and sys.argv[0] != "-m":
        words = [sys.executable, *sys.argv]
    if words and python.is_file() and not installed() and not os.environ.get(_AGAIN):
        os.environ[_AGAIN] = "1"
        os.execv(str(python), [str(python), *words[1:]])


def environment() -> Path:
    """The folder of the environment whose Python this is."""
    return Path(sys.executable).absolute().parents[1]


def half_made() -> bool:
    """Whether ``scripts/setup.sh`` has begun that environment and not finished it."""
    return (environment() / ".dsmoe-started").is_file()


def _venv_python() -> Path:
    return project_root() / ".venv" / "bin" / "python"


def _remedy(python: Path) -> str:
    """What to do, where ``python`` would be the one of ``.venv``."""
    command = dependencies.how_to_install("run")
    if installed():
        return f"run {command}"
    if not python.is_file():
        return f"run {command}, which makes .venv, and repeat"
    if Path(sys.executable).absolute() == python:
        half = f"{python.parents[1]} is half made (its set-up was stopped, or still runs)"
        return f"{half}; run {command}"
    return f"run this with {python}"
