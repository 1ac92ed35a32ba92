"""The files of one run's folder, through which the training processes and the command speak.

``case.json`` and ``deepspeed.json`` go in; ``iterations.jsonl`` (a line an iteration),
``outcome.json`` (what the run measured) and ``log.txt`` (all that the processes printed) come
out. A file that is there is whole: each is written beside its name and renamed, except the two
that grow.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from dsmoe.common.files import read_large, write_output

CASE = "case.json"
DEEPSPEED = "deepspeed.json"
ITERATIONS = "iterations.jsonl"
OUTCOME = "outcome.json"
LOG = "log.txt"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` whole or not at all."""
    write_output(path, (json.dumps(value, indent=2) + "\n").encode("ascii"))


def read_json(path: Path) -> Any:
    """The value in ``path``. Raises OSError, and ValueError where it is no JSON."""
    try:
        return json.loads(read_large(path).decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def make_run_folder(output: Path, name: str) -> Path:
    """A new folder ``output/runs/<time>-<name>`` that no other run has."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        folder = output / "runs" / (f"{stamp}-{name}" + (f"-{attempt}" if attempt else ""))
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{output / 'runs'} has a thousand runs of this second")


class IterationLog:
    """Reads what ``iterations.jsonl`` has gained since the last call; the file may not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def new_lines(self) -> list[dict[str, Any]]:
        """The iterations written since the last call; a line still being written waits."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
