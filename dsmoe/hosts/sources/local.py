"""This machine alone: its GPUs, counted in other processes so that nothing stays initialised."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys

from dsmoe.common import programs
from dsmoe.common.errors import SourceProblem
from dsmoe.hosts.host import Candidate
from dsmoe.hosts.sources.found import Found

TORCH_SECONDS = 30.0
NVIDIA_SMI_SECONDS = 10.0
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
    """The GPUs of this machine and how they were counted: torch first, nvidia-smi otherwise.

    Raises SourceProblem where torch sees none and nvidia-smi does not answer.
    """
    by_torch, why = count_by_torch()
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
        return by_tool, f"GPUs counted by nvidia-smi ({why})"
    return 0, "no GPU by torch or nvidia-smi"


def count_by_torch() -> tuple[int, str]:
    """GPUs as torch sees them; where it sees none, why, for the report."""
    if importlib.util.find_spec("torch") is None:
        return 0, "there is no torch here"
    try:
        done = programs.ask([sys.executable, "-c", _TORCH], TORCH_SECONDS)
    except (OSError, programs.TimedOut):
        return 0, f"torch gave no answer within {TORCH_SECONDS:g} s"
    match = re.search(r"^gpus ([0-9]+)$", done.stdout, re.MULTILINE)
    if not match or done.returncode != 0:
        return 0, "torch cannot be imported"
    return int(match.group(1)), "this torch sees none"


def _count_by_nvidia_smi() -> int:
    program = shutil.which("nvidia-smi")
    if not program:
        return 0
    try:
        done = programs.ask([program, "-L"], NVIDIA_SMI_SECONDS)
    except OSError:
        return 0
    except programs.TimedOut as error:
        raise SourceProblem(
            f"{error}, so the GPUs of this machine cannot be counted; check the driver, or give "
            "--hosts localhost:N"
        ) from None
    if done.returncode != 0:
        return 0
    return len(re.findall(r"^GPU [0-9]+:", done.stdout, re.MULTILINE))
