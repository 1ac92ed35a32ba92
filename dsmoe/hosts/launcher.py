"""Host files read back by our strict reader, and by the launcher's own where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

from dsmoe.common.errors import HostProblem
from dsmoe.common.places import checkout_folder, project_root
from dsmoe.hosts.host import Host
from dsmoe.hosts.hostfile import read_hostfile
from dsmoe.hosts.launcher_check import MARK

IMPORT_SECONDS = 120
OWN = "the strict reader"
LAUNCHER = "deepspeed.launcher.runner.fetch_hostfile"


def check_files(folder: Path, expected: Mapping[str, Sequence[Host]]) -> tuple[list[str], str]:
    """Read every file of ``expected`` in ``folder`` back; return who read them, and a warning.

    The launcher is that of an importable DeepSpeed, else that of the project's checkout, if it is
    there. The warning is "" unless it is there and cannot be imported. Raises HostProblem if a
    reader sees other hosts than were meant: a bug here, caught before any file is replaced.
    """
    for name, hosts in expected.items():
        _compare(OWN, name, list(read_hostfile(folder / name)), list(hosts))
    place = None
    if not _deepspeed_installed():
        place = checkout_folder()
        if not (place / "deepspeed" / "launcher" / "runner.py").is_file():
            return [OWN], ""
    answer = _ask_launcher(folder, place)
    if "error" in answer:
        reason = " ".join(str(answer["error"]).split())[:160]
        return [OWN], f"'import deepspeed' fails, so its own parser was not asked: {reason}"
    for name, hosts in expected.items():
        found = answer["files"].get(name)
        read = [Host(*pair) for pair in found] if isinstance(found, list) else found
        _compare(LAUNCHER, name, read, list(hosts))
    return [OWN, LAUNCHER], ""


def _compare(reader: str, name: str, read: object, meant: list[Host]) -> None:
    if read != meant:
        raise HostProblem(
            f"{name}: {reader} reads other hosts from it than were meant; nothing was replaced; "
            "please report this"
        )


def _deepspeed_installed() -> bool:
    # A mere folder called deepspeed/ (the artifact has one) is a namespace without a file.
    spec = importlib.util.find_spec("deepspeed")
    return spec is not None and spec.origin is not None


def _python() -> str:
    """One that has torch, which DeepSpeed imports: this one, else that of ``.venv``."""
    made = project_root() / ".venv" / "bin" / "python"
    if importlib.util.find_spec("torch") is None and made.is_file():
        return str(made)
    return sys.executable


def _ask_launcher(folder: Path, checkout: Path | None) -> dict[str, Any]:
    command = [_python(), str(Path(__file__).with_name("launcher_check.py")), str(folder)]
    environment = dict(os.environ)
    if checkout is not None:
        paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=IMPORT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": type(error).__name__}
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith(MARK):
            answer: dict[str, Any] = json.loads(line[len(MARK) :])
            return answer
    return {"error": f"the process ended with status {done.returncode}"}
