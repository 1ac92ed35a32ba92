"""Looks inside a training step: what the tests of single defects measure."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from deepspeed.utils import groups

from support.scenarios import OPTIMIZERS, build, full, start_engine, train_steps


def reduced_slices(scenario: dict[str, Any]) -> dict[str, Any]:
    """Every slice that ZeRO reduces in one step: (its elements, the processes of its group)."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    calls = []
    real = dist.reduce

    def watched(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((tensor.numel(), dist.get_world_size(kwargs["group"])))
        return real(tensor, *args, **kwargs)

    dist.reduce = watched
    try:
        train_steps(engine, scenario, 0, 1)
    finally:
        dist.reduce = real
    elements: dict[int, int] = {}
    for numel, size in calls:
        elements[size] = elements.get(size, 0) + numel
    held = {"dense": 0, "expert": 0}
    for parameter in engine.module.parameters():
        held["expert" if is_moe_param(parameter) else "dense"] += parameter.numel()
    return {"reduced": elements, "held": held}


def gate_reductions(scenario: dict[str, Any]) -> dict[str, int]:
    """How often ZeRO has reduced the gradient of each gate in three steps."""
    scenario = full(scenario)
    model = build(scenario)
    engine = start_engine(scenario, model)
    names = {id(p): n for n, p in model.named_parameters()}
    reduced = {n: 0 for n in names.values() if "gate.wg" in n}
    real = engine.optimizer.reduce_independent_p_g_buckets_and_remove_grads

    def watched(parameter: torch.Tensor, group: int) -> None:
        if names[id(parameter)] in reduced:
            reduced[names[id(parameter)]] += 1
        real(parameter, group)

    engine.optimizer.reduce_independent_p_g_buckets_and_remove_grads = watched
    train_steps(engine, scenario, 0, 3)
    return reduced


def weights_after_start(scenario: dict[str, Any]) -> dict[str, Any]:
    """Has starting the engine changed a weight or counted a step?"""
    scenario = full(scenario)
    model = build(scenario)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    engine = start_engine(scenario, model)
    steps = [float(s["step"]) for s in engine.optimizer.optimizer.state.values() if "step" in s]
    zero = engine.optimizer
    if scenario["stage"]:
        groups_of_masters = [zero.single_partition_of_fp32_groups]
    else:
        groups_of_masters = zero.fp32_groups
    masters = [p.detach().clone() for group in groups_of_masters for p in group]
    total = sum(float(p.double().sum()) for p in before.values())
    return {
        "steps": steps,
        "master_sum": sum(float(p.double().sum()) for p in masters),
        "weight_sum": total,
    }


def bucket_after_backward(scenario: dict[str, Any]) -> dict[str, Any]:
    """How much of the reduce bucket one backward pass has written or divided."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    seen = []
    real = engine.optimizer.average_tensor

    def watched(tensor: torch.Tensor) -> None:
        tensor[engine.optimizer.elements_in_ipg_bucket :] = 8.0
        real(tensor)
        rest = tensor[engine.optimizer.elements_in_ipg_bucket :]
        seen.append((int(rest.numel()), bool((rest == 8.0).all())))

    engine.optimizer.average_tensor = watched
    train_steps(engine, scenario, 0, 1)
    return {"seen": seen}


def unfused_norm(scenario: dict[str, Any]) -> dict[str, Any]:
    """The gradient norm that fp16 without ZeRO reports, and what its gradients add up to."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    optimizer = engine.optimizer
    expected = []
    real = optimizer.unscale_and_clip_grads

    def watched(norm: float, *args: Any, **kwargs: Any) -> Any:
        dense = torch.zeros(1, dtype=torch.float64)
        expert = torch.zeros(1, dtype=torch.float64)
        for group in optimizer.fp16_groups:
            for p in group:
                (expert if is_moe_param(p) else dense).add_(p.grad.double().pow(2).sum())
        dist.all_reduce(expert, group=groups.get_expert_parallel_group())
        expected.append(float((dense + expert).sqrt()) / optimizer.cur_scale)
        return real(norm, *args, **kwargs)

    optimizer.unscale_and_clip_grads = watched
    found = train_steps(engine, scenario, 0, 2)["norms"]
    return {"found": found, "expected": expected}


def timers_used(scenario: dict[str, Any]) -> dict[str, Any]:
    """The MoE timers that one step of DeepSpeed's own layer has started."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, 1)
    layers = [*engine.moe_layers, *engine.gate_modules]
    return {"layers": len(layers), "timers": [list(layer.timers.timers) for layer in layers]}


def experts_of_own_layer(expert_parallel: int) -> dict[str, torch.Tensor]:
    """First weights of the experts of DeepSpeed's own layer, by global expert number."""
    scenario = full({"expert_parallel": expert_parallel})
    build(scenario)
    torch.manual_seed(3)
    from deepspeed.moe.layer import MoE

    layer = MoE(8, torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 8)), 4, k=2)
    experts = layer.deepspeed_moe.experts.deepspeed_experts
    first = groups.get_expert_parallel_rank() * len(experts)
    return {
        **{str(first + i): e[0].weight.detach().clone() for i, e in enumerate(experts)},
        "after": torch.rand(4),
    }


def adafactor_state_sizes(scenario: dict[str, Any]) -> dict[str, int]:
    """Elements of this rank's partitions and of the optimizer's state, in either mode."""
    sizes = {}
    for mode in ("sharded", "artifact"):
        scenario = full(scenario)
        params = {**OPTIMIZERS["Adafactor"], "mode": mode}
        config = {"optimizer": {"type": "Adafactor", "params": params}}
        engine = start_engine({**scenario, "config": config})
        train_steps(engine, scenario, 0, 1)
        partitions = engine.optimizer.single_partition_of_fp32_groups
        sizes["elements"] = sum(p.numel() for p in partitions)
        sizes[mode] = sum(_elements(s) for s in engine.optimizer.optimizer.state.values())
    return sizes


def _elements(state: Any) -> int:
    if torch.is_tensor(state):
        return state.numel()
    return sum(map(_elements, state.values())) if isinstance(state, dict) else 0


def warnings_of_a_run(scenario: dict[str, Any], folder: str) -> list[str]:
    """What Python warns of between building the engine and saving a checkpoint."""
    import warnings

    scenario = full(scenario)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine = start_engine(scenario)
        train_steps(engine, scenario, 0, scenario["steps"])
        engine.save_checkpoint(folder, tag="one")
    ignored = (ResourceWarning,)  # off by default in Python
    return [str(w.message) for w in caught if not issubclass(w.category, ignored)]


def parameter_dtypes(scenario: dict[str, Any]) -> list[str]:
    engine = start_engine(full(scenario))
    return sorted({str(p.dtype) for p in engine.module.parameters()})
