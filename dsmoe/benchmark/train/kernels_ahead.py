"""Start compiling a run's Hopper kernels before anything large is imported."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.run.folder import CASE, read_json


def start_kernels(folder: Path, local_rank: int) -> None:
    """In the first process of each host, where the case of ``folder`` is compiled in 16 or 8 bit.

    It is only for speed: what goes wrong here is left to the process that needs the kernel.
    """
    if local_rank != 0 or (os.environ.get("DSMOE_KERNELS") or "all") not in ("all", "nccl"):
        return
    with contextlib.suppress(Exception):
        case = Case.from_dict(read_json(folder / CASE)["case"])
        if not case.compiled or case.precision == "fp32" or case.moe_implementation == "deepspeed":
            return
        # without deepspeed's own import, which takes torch's seconds
        ahead = _by_path("deepspeed/moe/kernels/ahead.py")
        model, parallel = case.model, case.parallel
        packed = parallel.expert_parallel_size == 1
        ahead.start(case.precision, model.hidden_size // model.num_heads, packed)


def _by_path(name: str) -> Any:
    path = next(p for p in (Path(f, name) for f in sys.path if f) if p.is_file())
    spec = importlib.util.spec_from_file_location("dsmoe_ahead", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
