"""Layers of the model on a CPU, one after another, as a micro-batch has them.

An operation that is timed alone finds its operands in the cache and gets the same memory again. In
a step it finds neither, and takes up to twice as long; and much of a small layer's time is the
host's, between the operations.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from typing import Any, Callable

from dsmoe.benchmark.calibrate.clock import Clock
from dsmoe.benchmark.calibrate.shapes import Shapes

#: Layers: a dense one and a mixture by turns.
COUNT = 4
STEPS = 5
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")


def measure_layers(clock: Clock, shapes: Shapes) -> None:
    """Forward and backward of a model of :data:`COUNT` layers in each size: the whole by the wall
    clock, and of it what the products and fused attention take. Needs the patched DeepSpeed."""
    for width in shapes.widths:
        for tokens in shapes.tokens:
            what = {"kind": "layers", "tokens": tokens, "width": width, "count": COUNT}
            what.update(heads=shapes.heads, length=shapes.length, factor=shapes.factor)
            what.update(vocabulary=shapes.vocabulary, experts=shapes.experts[0])
            try:
                if clock.late():
                    raise TimeoutError("left out: the time for all measurements is used up")
                _measure(clock, _micro_batch(clock, shapes, width, tokens), what)
            except Exception as error:
                words = f"{type(error).__name__}: {error}"[:300]
                clock.row(**what, name="whole", error=words)


def _measure(clock: Clock, step: Callable[[], None], what: dict[str, Any]) -> None:
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        step()
    taken = []
    for _ in range(2 * STEPS):
        begin = time.perf_counter()
        step()
        taken.append(1000 * (time.perf_counter() - begin))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(STEPS):
            step()
    by_name = {event.key: event.self_cpu_time_total / 1000 for event in found.key_averages()}
    products = sum(by_name.get(name, 0.0) for name in PRODUCTS)
    attention = sum(ms for name, ms in by_name.items() if "scaled_dot_product" in name)
    whole = statistics.median(taken)
    clock.row(**what, name="whole", ms=whole, least_ms=min(taken), n=len(taken))
    clock.row(**what, name="products", ms=products / STEPS)
    clock.row(**what, name="attention", ms=attention / STEPS)


def _micro_batch(clock: Clock, shapes: Shapes, width: int, tokens: int) -> Callable[[], None]:
    torch = clock.torch
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed's own notes
        import torch.distributed as dist
        from deepspeed.moe.lm import MoELM, MoELMConfig
        from deepspeed.utils import groups  # type: ignore[attr-defined]

        if not dist.is_initialized():  # experts belong to a group, here of this process alone
            alone = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=alone, rank=0, world_size=1)
            groups.initialize(ep_size=1)
    config = MoELMConfig(
        hidden_size=width,
        num_layers=COUNT,
        num_experts=shapes.experts[0],
        num_heads=shapes.heads,
        vocab_size=shapes.vocabulary,
        sequence_length=shapes.length,
        ffn_multiplier=shapes.factor,
    )
    model = MoELM(config)
    ids = torch.randint(0, shapes.vocabulary, (tokens // shapes.length, shapes.length))

    def step() -> None:
        model(ids, ids).backward()

    return step
