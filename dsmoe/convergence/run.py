"""The training of one arm: the benchmark's own step, with an evaluation every so often.

Nothing between two evaluations waits for the device on this module's account: losses, expert load
and dropped shares are added up where they are, and read when the held-out loss is.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
import torch.distributed as dist

from dsmoe.benchmark.data.batches import WindowSampler, as_torch
from dsmoe.benchmark.run.folder import CASE, ITERATIONS, OUTCOME, read_json, write_json
from dsmoe.benchmark.train.failure import Stage
from dsmoe.benchmark.train.measures import parameter_count, peak_memory
from dsmoe.benchmark.train.start import Run, say_notes, start
from dsmoe.benchmark.train.training import one_step, step_tokens, stop
from dsmoe.common.errors import TrainingFailed


@dataclass(frozen=True)
class Schedule:
    """When to evaluate and how the learning rate rises; see arms.Setting."""

    eval_every: int
    eval_windows: int
    learning_rate: float
    rate_warmup: int

    def rate(self, step: int) -> float:
        """The learning rate of ``step`` (from 0)."""
        return self.learning_rate * min(1.0, (step + 1) / max(1, self.rate_warmup))


@dataclass
class Sums:
    """What is added up on the device: ``losses`` [3] (loss, cross-entropy, aux), ``load`` [L, E]
    and ``dropped`` [L] over ``count`` steps or batches."""

    losses: torch.Tensor
    load: torch.Tensor
    dropped: torch.Tensor
    count: int = 0

    @classmethod
    def zeros(cls, run: Run) -> Sums:
        experts = run.engine.module.config.num_experts
        layers = len(run.engine.module.config.moe_layers)
        sizes = ((3,), (layers, experts), (layers,))
        losses, load, dropped = (
            torch.zeros(size, dtype=torch.float64, device=run.device) for size in sizes
        )
        return cls(losses, load, dropped)

    def add(self, losses: torch.Tensor, stats: Any) -> None:
        self.losses += losses
        # DeepSpeed's own layer counts on the CPU
        self.load += stats.expert_load.to(self.load.device)
        self.dropped += stats.dropped_share.to(self.dropped.device)
        self.count += 1

    def read(self) -> tuple[list[float], list[list[float]], list[float]]:
        """Mean losses, each expert's share of first choices by layer, mean dropped shares: over
        all processes. Waits for the device."""
        flat = torch.cat([self.losses, self.dropped]) / (self.count * dist.get_world_size())
        dist.all_reduce(flat)
        dist.all_reduce(self.load)
        share = self.load / self.load.sum(dim=-1, keepdim=True).clamp(min=1)
        means = flat.tolist()
        return means[:3], share.tolist(), means[3:]


def train_whole(folder: Path, stage: Stage) -> None:
    """From joining the process group to ``outcome.json``; does not return. As training's own."""
    run = start(folder, stage)
    schedule = Schedule(**read_json(folder / CASE)["convergence"])
    outcome = train(run, schedule, folder / ITERATIONS)
    if run.rank == 0:
        write_json(folder / OUTCOME, outcome)
    stop(run)


def train(run: Run, schedule: Schedule, curve: Path) -> dict[str, Any]:
    """All steps; a line of ``curve`` for each evaluation, the first before any training.

    Raises TrainingFailed when a loss is not a number.
    """
    case = run.case
    sampler = WindowSampler(
        run.text.train,
        case.model.sequence_length,
        case.global_batch_size,
        seed=case.seed,
        vocab_size=case.model.vocab_size,
    )
    steps = case.iterations
    _report(run, curve, 0, {**evaluation(run, schedule), "seconds": 0.0})
    say_notes(run)
    run.engine.train()
    sums, seconds = Sums.zeros(run), 0.0
    begin = _now(run)
    for step in range(steps):
        for group in run.engine.optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        losses = one_step(run, step_tokens(run, sampler, step))
        sums.add(losses, run.engine.module.last_stats)
        if (step + 1) % schedule.eval_every and step + 1 < steps:
            continue
        each = (_now(run) - begin) / sums.count
        seconds += each * sums.count
        (loss, cross_entropy, aux), load, dropped = sums.read()
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"the loss is {loss} between steps {step + 2 - sums.count} and {step + 1}; "
                "expected a finite number: lower --learning-rate"
            )
        line = {
            "seconds": each,
            "cross_entropy": cross_entropy,
            "aux_loss": aux,
            "learning_rate": schedule.rate(step),
            "expert_load": load,
            "dropped_share": dropped,
        }
        _report(run, curve, step + 1, {**line, **evaluation(run, schedule)})
        run.engine.train()
        sums = Sums.zeros(run)
        begin = _now(run)
    return {
        "train_seconds": seconds,
        "held_out_loss_no_drop": evaluation(run, schedule, no_drop=True)["held_out_loss"],
        "peak_memory_bytes": peak_memory(run.device),
        "parameter_count": parameter_count(run.engine.module),
        "steps_per_epoch": sampler.steps_per_epoch,
    }


@torch.no_grad()
def evaluation(run: Run, schedule: Schedule, no_drop: bool = False) -> dict[str, Any]:
    """Cross-entropy, expert load and dropped share over the held-out windows, in evaluation mode.

    The engine is left in that mode. ``no_drop``: every expert takes all that it is offered; with
    a capacity a token's second expert can depend on the tokens after it.
    """
    case = run.case
    run.engine.eval()
    if no_drop:
        for module in run.engine.module.modules():
            if hasattr(module, "drop_tokens"):
                module.drop_tokens = False
    size = case.micro_batch_size
    sums = Sums.zeros(run)
    for batch in held_out_batches(run, schedule.eval_windows, size):
        tokens, labels = as_torch(batch, str(run.device))
        loss = run.engine(tokens, labels)
        stats = run.engine.module.last_stats
        sums.add(torch.stack([loss, stats.cross_entropy, stats.aux_loss]), stats)
    (_, held_out_loss, _), load, dropped = sums.read()
    if not math.isfinite(held_out_loss):
        raise TrainingFailed(f"the held-out loss is {held_out_loss}: lower --learning-rate")
    return {
        "held_out_loss": held_out_loss,
        "held_out_windows": sums.count * size,
        "held_out_load": load,
        "held_out_dropped": dropped,
    }


def held_out_batches(run: Run, windows: int, size: int) -> Iterator[np.ndarray]:
    """Batches [size, S+1] of up to ``windows`` held-out windows, the same at every call: evenly
    spaced, so that they come from all of the held-out documents."""
    model = run.case.model
    assert run.text.held_out is not None  # the command refused such a text
    sampler = WindowSampler(
        run.text.held_out,
        model.sequence_length,
        size,
        vocab_size=model.vocab_size,
        shuffle=False,
    )
    count = max(1, min(windows, sampler.windows) // size) * size
    chosen = np.linspace(0, sampler.windows - 1, count).astype(np.int64)
    for at in range(0, count, size):
        yield sampler.read(chosen[at : at + size])


def _report(run: Run, curve: Path, step: int, values: dict[str, Any]) -> None:
    run.stage.enter(f"after step {step}", run.seconds)
    tokens = step * run.case.global_batch_size * run.case.model.sequence_length
    if run.rank == 0:
        with curve.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": step, "tokens": tokens, **values}) + "\n")


def _now(run: Run) -> float:
    run.wait_for_device()
    return time.perf_counter()
