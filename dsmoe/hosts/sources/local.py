"""This machine alone: its GPUs, counted in other processes so that nothing stays initialised."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys

from dsmoe.hosts.host import Candidate
from dsmoe.hosts.sources.found import Found

COUNT_SECONDS = 90
_TORCH = "import torch; print('gpus', torch.cuda.device_count())"


def find(reason: str) -> Found:
    """``localhost`` with its GPUs, or with one CPU slot (to be replaced by ``--slots``)."""
    count, how = count_gpus()
    found = Found(source="local", reason=f"{reason}; {how}", candidates=[])
    if not count:
        found.device = "cpu"
        found.warnings.append("found no GPU: the slots are CPU processes; --slots N sets how many")
    found.candidates = [Candidate("localhost", count or 1, "this machine")]
    return found


def count_gpus() -> tuple[int, str]:
    """The GPUs of this machine and how they were counted: torch first, nvidia-smi otherwise."""
    by_torch = _count_by_torch()
    if by_torch:
        return by_torch, "GPUs counted by torch"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return 0, "CUDA_VISIBLE_DEVICES hides every GPU"
    by_tool = _count_by_nvidia_smi()
    if visible:
        # nvidia-smi does not know the variable, into which the launcher maps the slots.
        by_tool = min(by_tool, len(visible.split(",")))
    if by_tool:
        why = "there is no torch here" if by_torch is None else "this torch sees none"
        return by_tool, f"GPUs counted by nvidia-smi ({why})"
    return 0, "no GPU by torch or nvidia-smi"


def _count_by_torch() -> int | None:
    if importlib.util.find_spec("torch") is None:
        return None
    output = _output([sys.executable, "-c", _TORCH])
    match = re.search(r"^gpus ([0-9]+)$", output, re.MULTILINE)
    return int(match.group(1)) if match else None


def _count_by_nvidia_smi() -> int:
    program = shutil.which("nvidia-smi")
    if not program:
        return 0
    return len(re.findall(r"^GPU [0-9]+:", _output([program, "-L"]), re.MULTILINE))


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COUNT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
