"""Runs the launcher without the rest of DeepSpeed and without torch, which saves seconds.

``python lean.py runner ARGUMENTS`` is ``ds ARGUMENTS``, ``python lean.py ARGUMENTS`` is ``python -m
deepspeed.launcher.launch ARGUMENTS``. runner.py finds the hosts and starts launch.py there, which
starts a process for each GPU and waits for them. On other hosts it is started through ELSEWHERE.
They use only the files of this folder and a logger of DeepSpeed. runner.py imports torch only if
DSMOE_DEVICES is not set (devices.py).
"""

from __future__ import annotations

import logging
import runpy
import sys
import types
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# What ``python -c`` runs on another host, where DeepSpeed may lie elsewhere: this file of there.
# One line, since a login shell reads it. ssh and pdsh print it when they fail, so it must not hold
# the beginning of a message as one piece: whoever looks for messages would find it there.
ELSEWHERE = (
    "import importlib.util, runpy, sys; "
    'found = importlib.util.find_spec("deepspeed") or sys.exit("deepspeed" ": error: found no '
    "package deepspeed on this host; expected that of the first host, on PYTHONPATH or "
    'installed"); '
    'runpy.run_path(found.submodule_search_locations[0] + "/launcher/lean.py", run_name="__main__")'
)
# The format of deepspeed/utils/logging.py.
FORMAT = "[%(asctime)s] [%(levelname)s] [%(filename)s:%(lineno)d:%(funcName)s] %(message)s"


def _package(name: str, place: Path) -> types.ModuleType:
    """A package whose modules can be imported without running its __init__.py."""
    module = types.ModuleType(name)
    module.__path__ = [str(place)]
    sys.modules[name] = module
    return module


def _logger() -> logging.Logger:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(FORMAT))
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    return logger


if __name__ == "__main__":
    sys.path.pop(0)  # this folder; its modules are deepspeed.launcher's
    _package("deepspeed", PACKAGE)
    _package("deepspeed.utils", PACKAGE / "utils").logger = _logger()
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first != "runner" and not first.startswith("-"):
        words = f"found {first[:60]!a}, expected runner and the arguments of ds"
        print(f"deepspeed: error: {words}", file=sys.stderr)
        sys.exit(2)
    module = sys.argv.pop(1) if first == "runner" else "launch"
    runpy.run_module(f"deepspeed.launcher.{module}", run_name="__main__", alter_sys=True)
