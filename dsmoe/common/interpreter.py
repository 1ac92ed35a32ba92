"""Start again with the Python of ``.venv``, where this one lacks what the project needs.

``./run_deepspeed_benchmark.sh`` makes ``.venv`` beside the front doors; the other commands are
typed with whatever ``python`` is at hand. Where that one lacks a package and ``.venv`` is there,
the command goes on in ``.venv``; where it is not there, one line says how to make it.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from dsmoe.common.places import installed, project_root

EXIT_CODE = 8
_AGAIN = "DSMOE_STARTED_AGAIN"


def need(*packages: str) -> None:
    """Go on only where ``packages`` can be imported; call it when started as a program.

    Ends the process with one line and exit code 8 where they cannot be had.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing:
        return
    python = project_root() / ".venv" / "bin" / "python"
    words = getattr(sys, "orig_argv", None)  # Python 3.10 on: the command as it was typed
    if words is None and sys.argv[0] != "-m":
        words = [sys.executable, *sys.argv]
    if words and python.is_file() and not installed() and not os.environ.get(_AGAIN):
        os.environ[_AGAIN] = "1"
        os.execv(str(python), [str(python), *words[1:]])
    remedy = f"run {python}" if python.is_file() else f"{sys.executable} -m pip install them"
    if not installed() and not python.is_file():
        remedy = f"run {project_root() / 'scripts' / 'setup.sh'}, which makes .venv, and repeat"
    print(
        f"error: {sys.executable} cannot import {', '.join(missing)}; expected what "
        f"requirements.txt lists: {remedy}",
        file=sys.stderr,
    )
    sys.exit(EXIT_CODE)
