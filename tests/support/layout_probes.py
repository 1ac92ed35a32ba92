"""What the processes of the tests of expert layouts do."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.moe.utils import is_moe_param

from support.scenarios import build, end, full, start_engine


def own_expert_weights(scenario: dict[str, Any]) -> torch.Tensor:
    """The weights of the experts on this process, as they are at the start."""
    model = build(full(scenario))
    return torch.cat([p.detach().flatten() for p in model.parameters() if is_moe_param(p)])


def save_error(scenario: dict[str, Any], folder: str) -> str:
    """What saving raises; empty if it saves."""
    engine = start_engine(full(scenario))
    try:
        engine.save_checkpoint(folder, tag="one")
    except RuntimeError as error:
        return str(error)
    finally:
        end(engine)
    return ""
