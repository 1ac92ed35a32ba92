"""The optimizer's state of a model with experts, where ZeRO does not keep it.

There every expert parallel rank saves a file of its own, whole; at another expert parallel size
these belong to other experts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import groups
from deepspeed.utils.checkpoint_io import load


def load_expert_optimizer(engine: Any, folder: Any, tag: str, wanted: bool) -> dict[str, Any]:
    """The file of this process's expert parallel rank; ``{"optimizer": None}`` under ZeRO.

    ``wanted``: the state is to be loaded. Raises RuntimeError naming both expert parallel sizes
    where it is, ZeRO does not keep it, and they differ.
    """
    name = Path(engine._get_optimizer_ckpt_name(folder, tag, "*"))
    there = len(list(name.parent.glob(name.name)))
    here = groups.get_expert_parallel_world_size()
    if engine.zero_optimization():
        return {"optimizer": None}
    if wanted and there != here:
        raise RuntimeError(
            f"the checkpoint's optimizer state was saved with expert parallel size {there},"
            f" expected {here} as here: only ZeRO stages 1 and 2 change it; resume with {there}, or"
            " load with load_module_only=True"
        )
    rank = groups.get_expert_parallel_rank() if there == here else 0
    path = engine._get_optimizer_ckpt_name(folder, tag, rank)
    return load(path, map_location=torch.device("cpu"))
