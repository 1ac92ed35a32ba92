"""The program that simulates: cases as JSON in, plans as JSON out.

``python -m dsmoe.benchmark.plan.program`` is for estimate.py alone; all cases of a call have one
parallelism, whose groups are made once in a fake process group.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys

import torch
import torch.distributed as dist

try:
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torch.utils._python_dispatch import TorchDispatchMode  # noqa: F401
except ImportError:
    sys.exit(f"found torch {torch.__version__}, expected 2.8 or newer to plan with")

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.plan.simulation import simulate
from dsmoe.benchmark.plan.stage_memory import simulate_stages
from dsmoe.common.packages.no_compiler import without_compiler_anywhere

# torch 2.8 has the collectives of meta tensors in this module alone; 2.11 has them at once, and
# the module's package would import torch's compiler, two seconds.
if not torch._C._dispatch_has_kernel_for_dispatch_key("c10d::allreduce_", "Meta"):
    with contextlib.suppress(ImportError):
        from torch.distributed._tools import fake_collectives  # noqa: F401


def main() -> None:
    logging.disable(logging.INFO)
    specs = json.load(sys.stdin)
    parallel = specs[0]["case"]["parallel"]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=parallel["processes"])
    from deepspeed.utils import groups  # type: ignore[attr-defined]

    plan = simulate_stages
    if parallel["pipeline_parallel_size"] == 1:
        plan = simulate
        groups.initialize(
            ep_size=parallel["expert_parallel_size"], expert_layout=parallel["expert_layout"]
        )
    without_compiler_anywhere()
    plans = [plan(Case.from_dict(spec["case"]), spec["config"], spec["device"]) for spec in specs]
    print(json.dumps(plans))


if __name__ == "__main__":
    main()
