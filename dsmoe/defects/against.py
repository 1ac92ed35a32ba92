"""Run proofs in another Python and bring their verdicts back."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, Callable, Sequence

from dsmoe.common.errors import EnvironmentProblem
from dsmoe.common.files import expanded
from dsmoe.defects.listing import THERE, Proof

#: Beside a proof's own limit: the start of that Python, its import of DeepSpeed, and what is
#: compiled before the first proof (BUILD_SECONDS in there.py).
START_SECONDS = 780.0
#: What a verdict can be.
LIVES, FIXED, NONE, FAILED = "lives", "fixed", "not applicable", "could not run"
STATES = (LIVES, FIXED, NONE, FAILED)


def find_python(named: str) -> Path:
    """The interpreter that ``named`` (a file, a folder of an environment, a word on PATH) means.

    Raises EnvironmentProblem where there is none.
    """
    path = expanded(named)
    inside = path / "bin" / "python"
    found = str(inside) if inside.exists() else shutil.which(named if path.parts else "")
    if found is None:
        raise EnvironmentProblem(
            f"--against {named}: found no such program, expected the Python of an environment with "
            "DeepSpeed, such as venv/bin/python"
        )
    return Path(found).absolute()


def run_proofs(
    python: Path,
    chosen: Sequence[Proof],
    limit: float,
    say: Callable[[Proof, dict[str, Any]], None],
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """The versions found there, and the verdict of each proof by its name.

    ``limit``: seconds a proof may take. ``say`` is called with each verdict as it comes.
    Raises EnvironmentProblem where DeepSpeed cannot be imported there.
    """
    by_path = {str(proof.path): proof for proof in chosen}
    command = [str(python), str(THERE), *by_path, "--limit", f"{limit:g}"]
    versions: dict[str, str] = {}
    verdicts: dict[str, dict[str, Any]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        watch = _Watch(process, limit + START_SECONDS)
        try:
            for line in process.stdout:
                watch.begin()
                record = _record(line)
                if record and "error" in record:
                    raise EnvironmentProblem(
                        f"{python} cannot import DeepSpeed: {record['error']}; install the release "
                        "there (DS_BUILD_OPS=0 pip install deepspeed==...)"
                    )
                if record and "proof" in record:
                    proof = by_path[str(Path(record.pop("proof")))]
                    record["command"] = command_of(proof)
                    verdicts[proof.name] = record
                    say(proof, record)
                elif record and "deepspeed" in record:
                    versions = record
        finally:
            watch.end()
            if process.poll() is None:
                process.terminate()
    if watch.late:
        raise EnvironmentProblem(
            f"{python} gave no answer for {watch.seconds:g} s and was ended; see whether "
            f"`{python} -c 'import deepspeed'` ends there, or allow more with --limit"
        )
    if not versions:
        raise EnvironmentProblem(f"{python} ended with {process.returncode} before the first proof")
    for proof in chosen:
        if proof.name not in verdicts:
            verdicts[proof.name] = {"state": FAILED, "reason": "the program ended", "seconds": 0.0}
    return versions, verdicts


class _Watch:
    """Ends ``process`` where it says nothing for ``seconds``; ``late`` is set then."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.seconds, self.late = seconds, False
        self._process = process
        self._timer: threading.Timer | None = None
        self.begin()

    def begin(self) -> None:
        """Wait from now on."""
        self.end()
        self._timer = threading.Timer(self.seconds, self._kill)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _kill(self) -> None:
        self.late = True
        self._process.kill()


def command_of(proof: Proof) -> str:
    """The command that shows a verdict, from the project's folder."""
    return f"PYTHON dsmoe/defects/there.py dsmoe/defects/proofs/{proof.name}.py"


def _record(line: bytes) -> dict[str, Any] | None:
    """A line of there.py; None for what a library printed."""
    if not line.startswith(b"{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
