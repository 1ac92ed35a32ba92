"""What one host says of itself, as a line of JSON; sent to its Python through ssh, or run here.

It is the text of this file that travels, so nothing but the standard library is imported at its
head and no other part of the project is needed to answer. ``ask`` at the end is called with the
project's folder and the checkout's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import runpy
import subprocess
import sys
import tempfile
import time
from typing import Any

SIGN = "[dsmoe-host] "
# Printed at once: this host can be logged in to, and its Python runs.
HELLO = "[dsmoe-host-runs]"
NVIDIA_SMI_SECONDS = 10
# A GPU with more than this share of its memory in use is not free.
BUSY_SHARE = 0.05


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_for_cpu() -> str | None:
    """The version of a torch that was built without GPUs, by the file in which it says so.

    Importing torch takes seconds, which nothing else about such a torch is worth. None where torch
    is imported already, or has another build, or is not there.
    """
    if "torch" in sys.modules:
        return None
    found = importlib.util.find_spec("torch")
    for folder in (found and found.submodule_search_locations) or ():
        try:
            names = runpy.run_path(os.path.join(folder, "version.py"))  # noqa: PTH118
            if names["cuda"] is None and names["hip"] is None and names.get("xpu") is None:
                return str(names["__version__"])
        except Exception:  # whatever is wrong with it, importing it will tell
            return None
    return None


def torch_facts() -> dict[str, Any]:
    """torch's version and what it sees: ``torch`` None where it cannot be imported."""
    version = torch_for_cpu()
    if version is not None:
        return {"torch": version, "gpus": 0, **cpu_facts()}
    try:
        import torch
    except ImportError as error:
        return {"torch": None, "torch_error": str(error)}
    facts = {"torch": torch.__version__, "gpus": torch.cuda.device_count()}
    if facts["gpus"]:
        properties = torch.cuda.get_device_properties(0)
        facts["device_name"] = properties.name
        facts["device_memory_bytes"] = properties.total_memory
        facts["cuda"] = str(torch.version.cuda)
        return facts
    return {**facts, **cpu_facts()}


def cpu_facts() -> dict[str, Any]:
    """The processor that a run without GPUs has."""
    return {"device_name": platform.processor() or platform.machine(), "cores": cores()}


def free_gpus() -> dict[str, Any]:
    """``free_gpus``: how many GPUs hardly hold anything, by nvidia-smi; None where it fails.

    Where nvidia-smi is there and does not answer, ``gpu_error`` says so.
    """
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        # Not a pipe, which would be waited for as long as a child of the program has it.
        with tempfile.TemporaryFile() as out:
            subprocess.run(
                query, stdout=out, stderr=subprocess.DEVNULL, timeout=NVIDIA_SMI_SECONDS, check=True
            )
            out.seek(0)
            said = out.read().decode("ascii", "replace")
    except subprocess.TimeoutExpired:
        error = f"nvidia-smi gave no answer within {NVIDIA_SMI_SECONDS} s"
        return {"free_gpus": None, "gpu_error": error}
    except (OSError, subprocess.SubprocessError):
        return {"free_gpus": None}
    pairs = [line.split(",") for line in said.splitlines() if line.strip()]
    try:
        free = sum(float(used) <= BUSY_SHARE * float(total) for used, total in pairs)
    except ValueError:
        free = None
    return {"free_gpus": free}


def tree_facts(project: str, checkout: str) -> dict[str, Any]:
    sys.path.insert(0, project)
    try:
        from dsmoe.patchset.checkout.state import describe
    except ImportError as error:
        return {"state": None, "state_error": f"{project} has no dsmoe: {error}"}
    from pathlib import Path

    found = describe(Path(checkout))
    return {"state": found.name, "trees": dict(found.result)}


def ask(project: str, checkout: str) -> None:
    print("\n" + HELLO, flush=True)
    facts: dict[str, Any] = {"begin": time.time(), "python": platform.python_version()}
    facts.update(torch_facts())
    facts.update(free_gpus())
    facts.update(tree_facts(project, checkout))
    facts["end"] = time.time()
    print("\n" + SIGN + json.dumps(facts), flush=True)
