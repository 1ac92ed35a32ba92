"""What the processes of the checkpoint tests do: save, resume, load and fail to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from support.scenarios import build, full, start_engine, train_steps, whole_weights


def save_and_resume(scenario: dict[str, Any], folder: str, half: int) -> dict[str, Any]:
    """Train on with a fresh engine from a checkpoint of step ``half``; both halves' losses."""
    scenario = full(scenario)
    steps = scenario["steps"]
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, half)
    engine.save_checkpoint(folder, tag="half", client_state={"mine": 7})
    expected = train_steps(engine, scenario, half, steps)
    expected["weights"] = whole_weights(engine.module)
    return {"expected": expected, "resumed": resume(scenario, folder, half)}


def resume(scenario: dict[str, Any], folder: str, half: int) -> dict[str, Any]:
    """The rest of the steps after loading ``folder`` into a model of other initial weights."""
    scenario = full(scenario)
    other = build({**scenario, "seed": 99})
    engine = start_engine(scenario, other)
    path, client_state = engine.load_checkpoint(folder, tag="half")
    assert path is not None and client_state["mine"] == 7
    assert engine.global_steps == half
    result = train_steps(engine, scenario, half, scenario["steps"])
    return {**result, "weights": whole_weights(engine.module)}


def save_and_resume_all(
    scenarios: list[dict[str, Any]], folder: str, half: int
) -> list[dict[str, Any]]:
    return [save_and_resume(s, f"{folder}/{i}", half) for i, s in enumerate(scenarios)]


def load_error(scenario: dict[str, Any], folder: str, tag: str) -> str:
    """What loading ``tag`` raises; empty if it loads."""
    engine = start_engine(full(scenario))
    try:
        engine.load_checkpoint(folder, tag=tag)
    except RuntimeError as error:
        return str(error)
    return ""


def weights_after_loading(
    scenario: dict[str, Any], folder: str, tag: str | None, module_only: bool
) -> dict[str, Any]:
    """The model's weights after loading, and ZeRO's fp32 copies of them flattened together."""
    scenario = full({**scenario, "seed": 99})
    engine = start_engine(scenario)
    path, _ = engine.load_checkpoint(folder, tag=tag, load_module_only=module_only)
    partitions = getattr(engine.optimizer, "single_partition_of_fp32_groups", [])
    return {
        "loaded": path is not None,
        "weights": whole_weights(engine.module),
        "masters": [p.detach().clone() for p in partitions],
    }


def train_and_save(scenario: dict[str, Any], folder: str, tags: list[str]) -> dict[str, Any]:
    """Train one step before each tag and save it."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    for step, tag in enumerate(tags):
        train_steps(engine, scenario, step, step + 1)
        engine.save_checkpoint(folder, tag=tag)
    return whole_weights(engine.module)


def save_that_is_stopped(scenario: dict[str, Any], folder: str) -> dict[str, Any]:
    """Save tag "one", then again with every file torn half-way; does the first one still load?"""
    scenario = full(scenario)
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, 1)
    engine.save_checkpoint(folder, tag="one")
    saved = whole_weights(engine.module)
    train_steps(engine, scenario, 1, 2)
    real = torch.save

    def torn(state: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(file, "write"):
            file = Path(file).open("wb")  # noqa: SIM115
        file.write(b"half of it")
        file.flush()
        raise KeyboardInterrupt

    torch.save = torn
    try:
        engine.save_checkpoint(folder, tag="one")
        stopped = False
    except KeyboardInterrupt:
        stopped = True
    finally:
        torch.save = real
    engine.load_checkpoint(folder)
    return {"stopped": stopped, "saved": saved, "loaded": whole_weights(engine.module)}
