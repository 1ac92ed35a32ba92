"""The files of a pipeline's checkpoint, and the weights in them (deepspeed/moe/pipeline)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.checkpoint_io import load
from torch import Tensor

MODEL = "pipeline_model_states.pt"


def file_of(rank: int) -> str:
    """The file with the pieces of process ``rank``."""
    return f"pipeline_{rank:04d}_optim_states.pt"


def whole_weights_of(place: Any) -> dict[str, Tensor]:
    """The whole fp32 weights in the folder of one tag, which a pipeline wrote.

    Raises ValueError where elements are missing.
    """
    place = Path(place)
    model = load(place / MODEL, map_location="cpu")
    weights = {name: torch.empty(shape) for name, shape in model["shapes"].items()}
    left = {name: weight.numel() for name, weight in weights.items()}
    for name in model["files"]:
        for key, start, values in load(place / name, map_location="cpu")["pieces"]:
            weights[key].view(-1)[start : start + values.numel()].copy_(values)
            left[key] -= values.numel()
    wrong = [name for name, count in left.items() if count]
    if wrong:
        raise ValueError(f"{place} lacks elements of {wrong[0]}: copy the whole folder")
    return weights
