"""What a launcher is asked for: training processes, and where."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from dsmoe.benchmark.run.layout import Layout
from dsmoe.common.places import import_root

TRAINING_PROCESS = import_root() / "dsmoe" / "benchmark" / "train" / "training_process.py"


@dataclass(frozen=True)
class Job:
    """Training processes where ``layout`` says, which meet at ``port`` of the first host.

    ``port`` None: a free one. ``master`` None: the launcher finds the address of the first host.
    ``script`` is what each process runs. ``gpus``: of this machine, where they are counted already,
    so that DeepSpeed's launcher need not import torch for that.
    """

    checkout: Path
    run_dir: Path
    layout: Layout
    port: int | None = None
    master: str | None = None
    script: Path = TRAINING_PROCESS
    gpus: int | None = None

    def words(self) -> list[str]:
        """The script and its arguments, the same for every launcher."""
        return [str(self.script), "--watched", "--run-dir", str(self.run_dir)]

    def process(self) -> list[str]:
        """The command of one process."""
        return [sys.executable, *self.words()]

    def environment(self) -> dict[str, str]:
        """What every process has beside the environment of its launcher."""
        paths = [str(self.checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
