"""One process of ranks.Pool: join the group, then do what the numbers on stdin stand for."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import deepspeed  # noqa: F401  (it must be imported before the process group exists)
import torch
import torch.distributed as dist

from support import (
    checkpoint_scenarios,
    client_probes,
    config_probes,
    counter_probes,
    energy_probes,
    engine_probes,
    exchange_probes,
    export_probes,
    file_probes,
    flat_probes,
    layout_probes,
    manifest_probes,
    pipeline_scenarios,
    plan_probes,
    probes,
    refusal_probes,
    resize_probes,
    rest_probes,
    resume_probes,
    scenarios,
    sharded_probes,
)
from support.gloo_device import share_gloo_device

MODULES = (
    scenarios,
    checkpoint_scenarios,
    probes,
    flat_probes,
    layout_probes,
    resume_probes,
    engine_probes,
    exchange_probes,
    export_probes,
    rest_probes,
    client_probes,
    config_probes,
    counter_probes,
    energy_probes,
    file_probes,
    manifest_probes,
    pipeline_scenarios,
    plan_probes,
    refusal_probes,
    resize_probes,
    sharded_probes,
)


def serve(folder: Path, rank: int, processes: int) -> None:
    """Does the calls whose numbers arrive in ``folder``/calls``rank``; returns at its end."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
    os.environ.update({name: str(value) for name, value in place.items()})
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        # What a container's environment may have switched on; tests in fp32 mean fp32.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    else:
        share_gloo_device()
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=processes,
    )
    with (folder / f"calls{rank}").open() as calls:
        for line in calls:
            call = line.strip()
            function, *arguments = torch.load(folder / f"in{call}")
            module = next(module for module in MODULES if hasattr(module, function))
            result = getattr(module, function)(*arguments)
            # What stays after a call (a compiled graph, an engine that a hook holds) stays for
            # good. Each engine collects garbage several times, which must not look at it again.
            gc.collect()
            gc.freeze()
            # The file's name is the sign that it is whole.
            torch.save(result, folder / f"saving{rank}")
            (folder / f"saving{rank}").replace(folder / f"out{call}-{rank}")
            (folder / "done").write_bytes(b".")  # a FIFO that ranks.Pool waits at


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    os._exit(0)  # gloo's threads can abort an orderly exit; see train/training_process.py
