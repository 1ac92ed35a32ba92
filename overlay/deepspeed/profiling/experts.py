"""What DeepSpeed's profiler and timers leave out of a model with experts.

The profiler counts calls of ``torch.nn.functional``; stacked experts, the router and attention are
products by ``torch.bmm`` and its like. Its number of parameters is that of one process.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
import torch.nn.functional as F
from deepspeed.moe.utils import is_moe_param
from deepspeed.utils import groups, log_dist

_REPLACED: list[tuple[Any, str, Any]] = []


def count_products(counts: list[list[tuple[str, int]]]) -> None:
    """Add the multiplications of every product to the last list in ``counts``, if there is one.

    ``counts`` is the profiler's: a list for each module whose forward is under way.
    """
    if _REPLACED:
        return
    for owner, name, macs in _products():
        real = getattr(owner, name)
        _REPLACED.append((owner, name, real))
        setattr(owner, name, _counted(real, name, macs, counts))


def stop_counting() -> None:
    """Put torch's functions back."""
    while _REPLACED:
        setattr(*_REPLACED.pop())


def _products() -> list[tuple[Any, str, Callable[..., int]]]:
    found: list[tuple[Any, str, Callable[..., int]]] = [
        (torch, "bmm", _product),
        (torch, "mm", _product),
        (torch, "matmul", _product),
        (torch, "addmm", _added),
        (torch, "baddbmm", _added),
        (torch, "einsum", _einsum),
        (torch.Tensor, "__matmul__", _product),
        (torch.Tensor, "matmul", _product),
        (torch.Tensor, "bmm", _product),
        (torch.Tensor, "mm", _product),
    ]
    if hasattr(F, "scaled_dot_product_attention"):
        found.append((F, "scaled_dot_product_attention", _attention))
    return found


def _counted(real: Any, name: str, macs: Callable[..., int], counts: list) -> Any:
    @functools.wraps(real)
    def counted(*args: Any, **options: Any) -> Any:
        if counts:
            counts[-1].append((name, macs(*args, **options)))
        return real(*args, **options)

    return counted


def _product(left: Any, right: Any, **_: Any) -> int:
    """Multiplications of a matmul, of any dimensions, batches broadcast."""
    rows = left.shape[-2] if left.dim() > 1 else 1
    columns = right.shape[-1] if right.dim() > 1 else 1
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return batch.numel() * rows * left.shape[-1] * columns


def _added(_: Any, left: Any, right: Any, **options: Any) -> int:
    return _product(left, right)


def _einsum(rule: Any, *operands: Any) -> int:
    """The product of all index sizes; 0 for the forms that are seldom used."""
    values = (
        operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    )
    if not isinstance(rule, str) or "." in rule or len(values) < 2:
        return 0
    names = rule.replace(" ", "").split("->")[0].split(",")
    sizes = {i: n for name, value in zip(names, values) for i, n in zip(name, value.shape)}
    return torch.Size(sizes.values()).numel()


def _attention(query: Any, key: Any, value: Any, *_: Any, **options: Any) -> int:
    """Scores and their product with the values, as if nothing were masked."""
    return query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * value[0, 0].numel()


def model_parameters(profiler: Any) -> int:
    """Trained parameters of the whole model: of all experts and model parallel ranks.

    ``profiler`` is a FlopsProfiler that has started.
    """
    total = profiler.get_total_params()
    engine = profiler.ds_engine
    if engine is None:
        return total
    if engine.has_moe_layers:
        here = sum(
            p.numel() for p in profiler.model.parameters() if is_moe_param(p) and p.requires_grad
        )
        total += here * (groups.get_expert_parallel_world_size() - 1)
    return total * engine.mp_world_size


def has_stepped(engine: Any) -> bool:
    """Whether a backward pass and a step have been timed, as none has in the first forward."""
    names = ("backward", "step") if engine.wall_clock_breakdown() else ()
    return bool(names) and all(engine.timers(name).elapsed(False) > 0.0 for name in names)


def log_forward_breakdown(engine: Any, forward: float) -> None:
    """Print the times in ms within the last forward pass that something measured.

    Only DeepSpeed's own layer does; of another nothing is printed.
    """
    layers, gates = engine.moe_layers, engine.gate_modules
    times = {
        "forward_moe": sum(layer.time_moe for layer in layers),
        "1st alltoall": sum(layer.time_falltoall for layer in layers),
        "2nd alltoall": sum(layer.time_salltoall for layer in layers),
        "top-k": sum(gate.gate_time for gate in gates),
    }
    measured = ", ".join(f"{name}: {time:.2f}" for name, time in times.items() if time > 0.0)
    if measured:
        rank = torch.distributed.get_rank()
        log_dist(f"rank={rank} time (ms) | forward: {forward:.2f} ({measured})", ranks=[0])
