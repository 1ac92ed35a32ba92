"""Host files read back by our strict reader, and by the launcher's own where there is one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

from dsmoe.hosts.errors import HostProblem
from dsmoe.hosts.host import Host
from dsmoe.hosts.hostfile import read_hostfile
from dsmoe.hosts.launcher_check import MARK

IMPORT_SECONDS = 120
OWN = "the strict reader"
LAUNCHER = "deepspeed.launcher.runner.fetch_hostfile"


def check_files(folder: Path, expected: Mapping[str, Sequence[Host]]) -> tuple[list[str], str]:
    """Read every file of ``expected`` in ``folder`` back; return who read them, and a warning.

    The warning is "" unless DeepSpeed is installed and cannot be imported. Raises HostProblem if a
    reader sees other hosts than were meant: a bug here, caught before any file is replaced.
    """
    for name, hosts in expected.items():
        _compare(OWN, name, list(read_hostfile(folder / name)), list(hosts))
    if not _deepspeed_installed():
        return [OWN], ""
    answer = _ask_launcher(folder)
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


def _ask_launcher(folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("launcher_check.py")), str(folder)]
    try:
        done = subprocess.run(
            command,
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
