"""What the processes of the tests of counters do."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from deepspeed.profiling import experts
from deepspeed.profiling.flops_profiler import FlopsProfiler

from support.scenarios import (
    DEVICE,
    build,
    end,
    full,
    start_engine,
    tokens,
    train_steps,
    whole_weights,
)


def profiled(scenario: dict[str, Any]) -> dict[str, float]:
    """The profiler's multiplications of a forward pass, and half of what torch's counter says."""
    from torch.utils.flop_counter import FlopCounterMode

    scenario = full(scenario)
    model = build(scenario).to(DEVICE)
    batch = tokens(scenario, 1)[0, 0].to(DEVICE)
    inputs = (batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
    profiler = FlopsProfiler(model)
    before = torch.bmm, torch.matmul, torch.einsum
    profiler.start_profile()
    model(*inputs)
    profiler.stop_profile()
    found = profiler.get_total_flops()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        profiler.print_model_profile(detailed=False)
    profiler.end_profile()
    assert before == (torch.bmm, torch.matmul, torch.einsum)
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return {"found": found, "expected": counter.get_total_flops() / 2, "said": said.getvalue()}


def counted_by_engine(scenario: dict[str, Any]) -> dict[str, Any]:
    """What the profiler and the timers print in a step, and all parameters of the model."""
    config = {"flops_profiler": {"enabled": True, "profile_step": 0, "detailed": False}}
    scenario = full({**scenario, "config": config})
    lines: list[str] = []
    real = experts.log_dist
    experts.log_dist = lambda text, ranks=None: lines.append(text)
    try:
        engine = start_engine(scenario)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            train_steps(engine, scenario, 0, 1)
        total = sum(w.numel() for w in whole_weights(engine.module).values())
        end(engine)
    finally:
        experts.log_dist = real
    return {"said": said.getvalue(), "parameters": total, "lines": lines}
