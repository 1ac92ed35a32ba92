"""DeepSpeed's process groups for tests that run in this one process."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A gloo group of one process, with expert parallel size 1."""
    import torch
    import torch.distributed as dist
    from deepspeed.utils import groups

    torch.set_num_threads(1)
    if not dist.is_initialized():
        meeting_point: Path = tmp_path_factory.mktemp("gloo") / "store"
        dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=0, world_size=1)
    if not groups.is_initialized():
        groups.initialize(ep_size=1)
