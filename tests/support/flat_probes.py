"""What the tests of flat_gradients measure inside a training step."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.host_levels import levels_of
from deepspeed.utils import groups, timer

from support.scenarios import (
    build,
    end,
    engine_config,
    full,
    on_hosts,
    start_engine,
    train_steps,
    whole_weights,
)


def summed_gradients(scenario: dict[str, Any]) -> dict[str, float]:
    """How far the gradient that the optimizer sees lies from the fp64 sum of the micro-batches'.

    One process. Relative, in the 2-norm; the step is not clipped.
    """
    scenario = full({**scenario, "clip": 0.0, "steps": 1})
    model = build(scenario)
    engine = start_engine(scenario, model)
    sums = {id(p): torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()}
    for p in model.parameters():
        p.register_hook(functools.partial(_add, sums[id(p)]))
    zero, seen = engine.optimizer, []
    real = zero.optimizer.step

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.extend(p.grad.double().clone() for p in zero.single_partition_of_fp32_groups)
        return real(*args, **kwargs)

    zero.optimizer.step = watched
    train_steps(engine, scenario, 0, 1)
    # release 0.5.4's name is the second
    groups = zero.bit16_groups if hasattr(zero, "bit16_groups") else zero.fp16_groups
    expected = torch.cat([sums[id(p)].view(-1) for g in groups for p in g])
    found = torch.cat([g[: sum(p.numel() for p in ps)] for g, ps in zip(seen, groups)])
    end(engine)
    return {"apart": float((found - expected).norm() / expected.norm())}


def _add(total: torch.Tensor, gradient: torch.Tensor) -> None:
    total.add_(gradient.double())


def waits_for_the_device(scenario: dict[str, Any], first: int, last: int) -> int:
    """How often the engine waits for the device in the steps ``first`` to ``last`` - 1."""
    scenario = full({**scenario, "steps": last})
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, first)
    cuda, calls = timer.torch.cuda, []
    real = cuda.synchronize
    cuda.synchronize = lambda *args: calls.append(args)
    try:
        train_steps(engine, scenario, first, last)
    finally:
        cuda.synchronize = real
    end(engine)
    return len(calls)


def overflow(scenario: dict[str, Any]) -> dict[str, Any]:
    """A step of fp16 whose loss overflows, then one that does not, with a dynamic loss scale."""
    config = {"fp16": {"enabled": True, "initial_scale_power": 14, "hysteresis": 1}}
    scenario = full({**scenario, "precision": "fp16", "config": config, "steps": 2})
    engine = start_engine(scenario)
    before, scale = whole_weights(engine.module), engine.optimizer.loss_scale
    zero = engine.optimizer
    zero.loss_scaler.cur_scale = 2.0**40
    train_steps(engine, scenario, 0, 1)
    skipped = whole_weights(engine.module)
    result = {
        "skipped": engine.skipped_steps,
        "unchanged": all(torch.equal(before[n], skipped[n]) for n in before),
        "halved": zero.loss_scale == 2.0**39,
    }
    zero.loss_scaler.cur_scale = scale
    train_steps(engine, scenario, 1, 2)
    after = whole_weights(engine.module)
    finite = all(bool(torch.isfinite(w).all()) for w in after.values())
    moved = any(not torch.equal(after[n], before[n]) for n in before)
    result["then"] = finite and moved and engine.skipped_steps == 1
    end(engine)
    return result


def start_error(config: dict[str, Any]) -> str:
    """What starting an engine with ``config`` laid over stage 2's raises; empty if it starts."""
    scenario = full({"flat": True})
    zero = {**engine_config(scenario)["zero_optimization"], **config}
    try:
        start_engine({**scenario, "config": {"zero_optimization": zero}})
    except ValueError as error:
        return str(error)
    return ""


COLLECTIVES = ("reduce", "all_reduce", "all_gather", "all_to_all_single")


def bytes_in_a_step(scenario: dict[str, Any]) -> dict[str, int]:
    """Bytes that this process gives to each collective in the second step.

    Without the exchange of tokens, which is for each micro-batch, and without the test's own sums.
    """
    scenario = full({**scenario, "steps": 2})
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, 1)
    given = dict.fromkeys(COLLECTIVES, 0)
    real = {name: getattr(dist, name) for name in COLLECTIVES}
    exchange = groups.get_expert_parallel_group()

    def counted(name: str, *args: Any, **options: Any) -> Any:
        if options.get("group") is not None and options["group"] is not exchange:
            sent = args[0] if name in ("reduce", "all_reduce") else args[1]
            given[name] += sent.numel() * sent.element_size()
        return real[name](*args, **options)

    for name in COLLECTIVES:
        setattr(dist, name, functools.partial(counted, name))
    try:
        train_steps(engine, scenario, 1, 2)
    finally:
        for name, function in real.items():
            setattr(dist, name, function)
    end(engine)
    return given


def weights_behind_their_masters(scenario: dict[str, Any]) -> dict[str, Any]:
    """After each step: the largest distance of a weight from its fp32 master, and all weights.

    ``allowed`` is what the rounding of the step's change and of the weights explains.
    """
    scenario = full(scenario)
    engine = start_engine(scenario)
    zero, found = engine.optimizer, {"apart": [], "allowed": [], "equal": True}
    for step in range(scenario["steps"]):
        before = [_partition(*flat).clone() for flat in _flat_weights(zero)]
        train_steps(engine, scenario, step, step + 1)
        apart, allowed = 0.0, 0.0
        for (whole, group), old, master in zip(
            _flat_weights(zero), before, zero.single_partition_of_fp32_groups
        ):
            weights = _partition(whole, group)
            apart = max(apart, float((weights - master).abs().max()))
            rounding = float(master.abs().max()) * torch.finfo(whole.dtype).eps
            allowed = max(allowed, float((master - old).abs().max()) / 254 + rounding)
            every = [torch.empty_like(whole) for _ in range(dist.get_world_size(group))]
            dist.all_gather(every, whole, group=group)
            found["equal"] &= all(torch.equal(every[0], other) for other in every)
        found["apart"].append(apart)
        found["allowed"].append(allowed)
    end(engine)
    return found


def _flat_weights(zero: Any) -> list[tuple[torch.Tensor, Any]]:
    """The flat weights of each parameter group, and who shares them; either base's names."""
    names = ("bit16_groups_flat", "fp16_groups_flat")
    whole = next(getattr(zero, name) for name in names if hasattr(zero, name))
    return [(flat.detach(), group) for flat, group in zip(whole, zero.real_dp_process_group)]


def _partition(whole: torch.Tensor, group: Any) -> torch.Tensor:
    """This process's part of ``whole``."""
    size = whole.numel() // dist.get_world_size(group)
    return whole[dist.get_rank(group) * size :][:size].float()


def two_passes_before_a_step(scenario: dict[str, Any]) -> list[torch.Tensor]:
    """The weights after a step behind two backward passes, each said to be the step's last."""
    scenario = full({**scenario, "steps": 2, "clip": 0.0})
    engine = start_engine(scenario)
    train_steps(engine, scenario, 0, 1)
    for _ in range(2):
        batch = torch.arange(26).view(2, 13) + dist.get_rank()
        engine.backward(engine(batch[:, :-1], batch[:, 1:]))
    engine.step()
    weights = list(whole_weights(engine.module).values())
    end(engine)
    return weights


def levels(scenario: dict[str, Any]) -> list[dict[str, Any] | None]:
    """For each group of parameters how it lies on hosts; groups as the ranks of their members."""
    scenario = full(scenario)
    engine = start_engine(scenario)
    with on_hosts(scenario["hosts"]):
        levels = levels_of(engine.optimizer.real_dp_process_group)
    found = []
    for at in levels:
        known = at and {
            "inside": at.inside and _ranks(at.inside),
            "between": _ranks(at.between),
            "host": at.host,
            "place": at.place,
        }
        found.append(known)
    end(engine)
    return found


def _ranks(group: Any) -> list[int]:
    mine = torch.tensor([dist.get_rank()])
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group=group)
    return [int(rank) for rank in every]
