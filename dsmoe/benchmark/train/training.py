"""The training of one process: real text through the real DeepSpeed engine.

One iteration is a whole step of the global batch: forward and backward of every micro-batch,
reduction, clipping and the optimizer.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
import torch.distributed as dist

from dsmoe.benchmark.data.batches import WindowSampler, artifact_ids, as_torch
from dsmoe.benchmark.run import marks
from dsmoe.benchmark.run.folder import ITERATIONS, OUTCOME, write_json
from dsmoe.benchmark.train.failure import Stage
from dsmoe.benchmark.train.measures import (
    dropped_shares,
    expert_load,
    held_out_loss,
    parameter_count,
    peak_memory,
)
from dsmoe.benchmark.train.start import Run, kernel_names, message_names, say_notes, start
from dsmoe.common.errors import TrainingFailed


def train_whole(folder: Path, stage: Stage) -> None:
    """Everything from joining the process group to ``outcome.json``; does not return.

    What was measured is on disk before anything else runs: ``outcome.json`` is written after the
    last iteration, and again with each figure that is taken after it. Raises whatever goes wrong,
    with ``stage`` saying where.
    """
    run = start(folder, stage)
    outcome = train(run, lambda line: _append(folder / ITERATIONS, line, run.rank))
    _write(folder / OUTCOME, outcome, run.rank)
    for name, measure in AFTERWARDS.items():
        run.stage.enter(f"after the last iteration, in {name}", run.seconds)
        outcome[name] = measure(run)
        _write(folder / OUTCOME, outcome, run.rank)
    stop(run)


def train(
    run: Run,
    report: Callable[[dict[str, Any]], None],
    first: int = 0,
    ends_after: Callable[[int], bool] = lambda done: False,
) -> dict[str, Any]:
    """The iterations of the case from ``first`` (0: all); returns what ``outcome.json`` keeps.

    ``ends_after`` is called by every process with the number of iterations that are done, after
    ``report``; True from it, in all processes, ends the training there.

    Raises :class:`TrainingFailed` when the loss is not a number.
    """
    case = run.case
    sampler = WindowSampler(
        run.text.train,
        case.model.sequence_length,
        case.global_batch_size,
        seed=case.seed,
        vocab_size=case.model.vocab_size,
    )
    run.engine.train()
    seconds, losses = [], []
    steps = case.warmup + case.iterations
    say_notes(run)
    ahead = step_tokens(run, sampler, first)
    if run.link:
        run.link.read()
    for step in range(first, steps):
        if step > first:
            run.stage.enter(f"at iteration {step + 1}", run.seconds)
        else:
            run.stage.words = f"at iteration {step + 1}"  # its time began with the start
        run.wait_for_device()
        if run.energy and step == case.warmup:
            run.energy.read()
        begin = time.perf_counter()
        skipped = run.engine.skipped_steps
        totals = one_step(run, ahead)
        if step + 1 < steps:  # while the device is at work
            ahead = step_tokens(run, sampler, step + 1)
        run.wait_for_device()
        taken = time.perf_counter() - begin
        if run.energy and step >= case.warmup:
            run.energy.read()
        dist.all_reduce(totals)
        loss, cross_entropy, aux = (totals / run.data_size).tolist()
        if run.link:
            run.link.read()
        # At fp16 an overflow is the loss scaler's to skip; a NaN loss is not.
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"the loss is {loss} at iteration {step + 1}; expected a finite number: lower "
                "the learning rate, or use bf16 or a dynamic loss scale"
            )
        scale_falls = getattr(run.engine.optimizer, "dynamic_loss_scale", False)
        if run.engine.skipped_steps > skipped and not scale_falls:
            raise TrainingFailed(
                f"the norm of the gradients is not finite at iteration {step + 1}, and the "
                "loss scale is a static one, so that every step would be skipped: lower the "
                "learning rate, or use bf16"
            )
        seconds.append(taken)
        losses.append(cross_entropy)
        report(
            {
                "iteration": step + 1,
                "measured": step >= case.warmup,
                "seconds": taken,
                "loss": loss,
                "cross_entropy": cross_entropy,
                "aux_loss": aux,
                "grad_norm": run.engine.get_global_grad_norm(),
                "skipped": run.engine.skipped_steps,
            }
        )
        if step in (first, case.warmup):
            say_notes(run)  # some things show when they are used
        if ends_after(step + 1):
            break
    warmup = case.warmup
    return {
        "warmup_seconds": seconds[:warmup],
        "step_seconds": seconds[warmup:],
        "losses": losses,
        "skipped_steps": run.engine.skipped_steps,
        "parameter_count": parameter_count(run.engine.module),
        "kernels": {**kernel_names(case), **message_names(run.engine)},
        "text": vars(run.text.info),
    }


# Figures that are taken after the last iteration, in this order. Each may fail by itself, and the
# evaluation needs memory of its own: so the peak comes before it.
AFTERWARDS: dict[str, Callable[[Run], Any]] = {
    "link": lambda run: run.link.by_host(run.case.warmup) if run.link else {},
    "energy_joules": lambda run: run.energy.joules() if run.energy else None,
    "peak_memory_bytes": lambda run: peak_memory(run.device),
    "expert_load": lambda run: expert_load(run.engine.module, run.device),
    "dropped_share": lambda run: dropped_shares(run.engine.module, run.device, run.data_size),
    "held_out_loss": lambda run: held_out_loss(run.engine, run.case, run.text, run.device),
}


def step_tokens(run: Run, sampler: WindowSampler, step: int) -> torch.Tensor:
    """This process's tokens of a step [A, m, S+1] on the host; for a GPU in pinned memory."""
    size = run.case.micro_batch_size
    batches = [
        sampler.micro_batch(step, accumulation, run.data_rank, run.data_size, size)
        for accumulation in range(run.case.micro_batches)
    ]
    stacked = np.stack(batches)
    if run.case.artifact_ids:
        largest, vocabulary = run.text.info.largest_id, run.case.model.vocab_size
        stacked = artifact_ids(stacked, largest, vocabulary)
    tokens = torch.from_numpy(stacked)
    return tokens.pin_memory() if run.device.type == "cuda" else tokens


def one_step(run: Run, tokens_AmS1: torch.Tensor) -> torch.Tensor:
    """One whole iteration; [3] sums over its micro-batches / their number: loss and its parts.

    In a pipeline those of this stage, which add up to the loss over the stages.
    """
    case = run.case
    totals = torch.zeros(3, device=run.device)
    # One copy for the whole step: each would wait until the device has done all that was queued.
    tokens_AmS, labels_AmS = as_torch(tokens_AmS1, str(run.device))
    if run.micro_batch is None:
        return torch.stack(run.engine.train_step(tokens_AmS, labels_AmS))
    for tokens, labels in zip(tokens_AmS, labels_AmS):
        loss = run.micro_batch(tokens, labels)
        run.engine.step()
        stats = run.engine.module.last_stats
        parts = torch.stack([loss, stats.cross_entropy, stats.aux_loss])
        totals += parts.to(totals.dtype) / case.micro_batches
    return totals


def stop(run: Run) -> None:
    """Leave the process group together and end the process.

    gloo's threads can outlive the interpreter and abort the process at exit ("terminate called
    without an active exception", seen about once in 50 runs), which the launcher would take for
    a failed run although everything is written; so the process ends here.
    """
    dist.barrier()
    marks.say(run.rank, marks.FINISHED)
    # A graph that holds NCCL's kernels has to go before the process group.
    run.engine, run.micro_batch = None, None
    gc.collect()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _write(path: Path, outcome: dict[str, Any], rank: int) -> None:
    if rank == 0:
        write_json(path, outcome)


def _append(path: Path, line: dict[str, Any], rank: int) -> None:
    if rank == 0:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
