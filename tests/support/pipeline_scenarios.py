"""What the processes of the pipeline tests do: train the model in stages, one way or another.

A scenario has the keys of ``scenarios.DEFAULTS`` and ``stages``. Column c of C takes micro-batch
a·C + c for its a-th, so that every layout with the same number trains on the same global batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.lm import MoELMConfig
from deepspeed.moe.pipeline import StageEngine, StageModel, make_stage_groups
from deepspeed.moe.pipeline.messages import host_transport, transport
from deepspeed.utils import groups

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.train.start import model_config
from support.scenarios import (
    MICRO_BATCH,
    MODEL,
    end,
    engine_config,
    full,
    tokens,
    whole_weights,
)

PIPELINE = {"stages": 2, "stage": 1, "flat": True, "model": {"num_layers": 4}}


def piped(scenario: dict[str, Any]) -> dict[str, Any]:
    return full({**PIPELINE, **scenario})


def start_stage(scenario: dict[str, Any], seed: int | None = None) -> StageEngine:
    """The engine of this process's stage; makes all groups anew."""
    forget_groups()
    made = make_stage_groups(scenario["stages"], scenario["expert_parallel"])
    config = MoELMConfig(**{**MODEL, **scenario["model"]})
    model = StageModel(config, made.stages, made.stage, scenario["seed"] if seed is None else seed)
    if scenario["compile"] is not None:
        torch.compiler.reset()
        model.compile_training(**scenario["compile"])
    settings = engine_config(scenario)
    settings["train_batch_size"] = MICRO_BATCH * scenario["accumulation"] * made.width
    return StageEngine(model, made, settings)


def piped_steps(engine: StageEngine, scenario: dict[str, Any], first: int, last: int) -> Any:
    """Steps ``first`` to ``last`` - 1; losses are means over all columns' micro-batches."""
    made, count = engine.stage_groups, scenario["accumulation"]
    data = tokens(scenario, count * made.width).to(engine.device)
    losses, norms = [], []
    for step in range(first, last):
        mine = data[step, made.column :: made.width]
        found = engine.train_step(mine[..., :-1].contiguous(), mine[..., 1:].contiguous())
        total = found.loss.double().clone()
        dist.all_reduce(total)
        losses.append(total.item() / made.width)
        norms.append(engine.get_global_grad_norm())
    return {"losses": losses, "norms": norms}


def all_weights(engine: StageEngine) -> dict[str, torch.Tensor]:
    """Every weight of the model, on every process; both copies of the tied embedding agree."""
    made, own = engine.stage_groups, whole_weights(engine.module)
    parts: list[Any] = [None] * made.stages
    dist.all_gather_object(parts, own, group=made.down)
    if made.stages > 1:
        assert torch.equal(parts[0]["embedding.weight"], parts[-1]["embedding.weight"])
    return {name: value for part in parts for name, value in part.items()}


def train_piped(scenario: dict[str, Any]) -> dict[str, Any]:
    scenario = piped(scenario)
    engine = start_stage(scenario)
    start = all_weights(engine)
    result = piped_steps(engine, scenario, 0, scenario["steps"])
    result = {**result, "start": start, "weights": all_weights(engine)}
    result.update(skipped=engine.skipped_steps, scale=engine.optimizer.loss_scale)
    close(engine)
    return result


def train_by_host(scenario: dict[str, Any]) -> dict[str, Any]:
    """Losses, norms and weights with each transport that a CPU has, by its class."""
    scenario, found = piped(scenario), {}
    host_transport.LEAST_PART = 100  # so that messages have several parts
    for kind in (transport.GroupTransport, transport.HostTransport):
        engine = start_stage(scenario)
        made = engine.stage_groups
        if kind is transport.HostTransport:
            made = replace(made, host_down=[made.down, made.up], host_up=[made.up, made.down])
        object.__setattr__(engine, "transport", kind(made, engine.device))
        result = piped_steps(engine, scenario, 0, scenario["steps"])
        found[kind.__name__] = {**result, "weights": all_weights(engine)}
        close(engine)
    return found


def close(engine: StageEngine) -> None:
    """End the engine and its groups, as ``scenarios.end`` does."""
    engine.stage_groups.__dict__.clear()
    forget_groups()
    end(engine)


def forget_groups() -> None:
    """Let the next engine make its groups; ``scenarios.end`` ends those that are left."""
    for name in ("_MODEL", "_EXPERT", "_EXPERT_DATA", "_DATA"):
        setattr(groups, f"{name}_PARALLEL_GROUP", None)


def train_all_piped(scenarios: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [train_piped(scenario) for scenario in scenarios]


def save_piped(scenario: dict[str, Any], folder: str, half: int) -> dict[str, Any]:
    """Train to step ``half`` and save, then to the end: losses, norms and weights of the rest."""
    scenario = piped(scenario)
    engine = start_stage(scenario)
    piped_steps(engine, scenario, 0, half)
    engine.save_checkpoint(folder, tag="half", client_state={"mine": 7})
    saved = all_weights(engine)
    result = piped_steps(engine, scenario, half, scenario["steps"])
    result = {**result, "saved": saved, "weights": all_weights(engine)}
    close(engine)
    return result


def resume_piped(scenario: dict[str, Any], folder: str, half: int) -> dict[str, Any]:
    """The same rest from the checkpoint, loaded into a model of other initial weights."""
    scenario = piped(scenario)
    engine = start_stage(scenario, seed=99)
    place, client = engine.load_checkpoint(folder)
    assert place is not None and client["mine"] == 7 and engine.global_steps == half
    saved = all_weights(engine)
    result = piped_steps(engine, scenario, half, scenario["steps"])
    result = {**result, "saved": saved, "weights": all_weights(engine)}
    close(engine)
    return result


def resume_all_piped(
    scenarios: list[dict[str, Any]], folder: str, half: int
) -> list[dict[str, Any]]:
    return [resume_piped(scenario, folder, half) for scenario in scenarios]


def load_error_piped(scenario: dict[str, Any], folder: str, tag: str | None = None) -> str:
    """What loading raises; empty if it loads."""
    engine = start_stage(piped(scenario))
    try:
        engine.load_checkpoint(folder, tag=tag)
    except RuntimeError as error:
        return str(error)
    finally:
        close(engine)
    return ""


def config_error(scenario: dict[str, Any]) -> str:
    """What making the engine raises; empty if it can be made."""
    try:
        close(start_stage(piped(scenario)))
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def measured_stage(values: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Bytes of tensors at the peak of the second of two real steps, and what went to experts."""
    # the plan's alone: torch 1.10, on which every other scenario runs, has no TorchDispatchMode
    from dsmoe.benchmark.plan.ledger import Ledger

    forget_groups()
    case, ledger = Case.from_dict(values), Ledger()
    made = make_stage_groups(
        case.parallel.pipeline_parallel_size, case.parallel.expert_parallel_size
    )
    with ledger:
        model = StageModel(model_config(case), made.stages, made.stage, 0)
        engine = StageEngine(model, made, config)
        for _ in range(2):
            ledger.restart()
            shape = (case.micro_batches, case.micro_batch_size, case.model.sequence_length)
            data = torch.randint(0, case.model.vocab_size, shape)
            engine.train_step(data, data)
            del data
    found = {"stage": made.stage, "peak": ledger.peak, "kinds": dict(ledger.peak_kinds)}
    found["sent"] = dict(ledger.sent)
    close(engine)
    return found
