"""What the processes of the tests of files for use without the engine do."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from support.scenarios import build, end, full, start_engine, train_steps, whole_weights


def save_with_weights(scenario: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train a step and save by both ways; the weights of all experts, and all masters' elements."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, 1)
    engine.save_checkpoint(folder)
    engine.save_fp16_model(folder, "model.bin")
    dist.barrier()
    size = scenario["expert_parallel"]
    weights = {}
    for name, value in whole_weights(engine.module).items():
        front, own, rest = name.partition("deepspeed_experts.")
        if not own:
            weights[name] = value
            continue
        number, _, rest = rest.partition(".")
        local = scenario["model"]["num_experts"] // size
        for rank, part in enumerate(value.chunk(size)):
            weights[f"{front}{own}{rank * local + int(number)}.{rest}"] = part
    partitions = engine.optimizer.state_dict()["single_partition_of_fp32_groups"]
    result = {"weights": weights, "masters": [p.detach().clone() for p in partitions]}
    end(engine)
    return result


def loads_whole(scenario: dict[str, Any], paths: list[str]) -> list[list[str]]:
    """Names that are missing or unexpected when a model in one process loads each of ``paths``."""
    model = build(full(scenario))
    found = [model.load_state_dict(torch.load(path), strict=False) for path in paths]
    return [[*keys.missing_keys, *keys.unexpected_keys] for keys in found]
