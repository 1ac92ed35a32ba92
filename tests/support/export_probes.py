"""What the processes of the export tests do."""

from __future__ import annotations

from typing import Any

import torch

from support.scenarios import DEVICE, end, full, start_engine, train_steps


def save_with_logits(case: dict[str, Any], folder: str) -> torch.Tensor:
    """Train three steps and save; the logits of fixed tokens, in fp32, from the engine's model."""
    scenario = full(case)
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, 3)
    engine.save_checkpoint(folder, tag="last")
    engine.eval()
    with torch.no_grad():
        logits = engine(torch.arange(24, device=DEVICE).reshape(2, 12)).float().cpu()
    end(engine)
    return logits
