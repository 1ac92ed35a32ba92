"""The training that is kept: the benchmark's loop, with checkpoints and curves.

A checkpoint holds the engine's state, the number of iterations that are done (the order of the
text follows from it) and every process's random state. On another number of processes the global
batches are the same; random draws are then new ones.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dsmoe.benchmark.run.folder import CASE, ITERATIONS, OUTCOME, read_json, write_json
from dsmoe.benchmark.run.marks import NOTE, say
from dsmoe.benchmark.train.failure import Stage
from dsmoe.benchmark.train.measures import dropped_shares, expert_load, held_out_loss
from dsmoe.benchmark.train.start import Run, start
from dsmoe.benchmark.train.training import stop, train
from dsmoe.common.errors import TrainingFailed
from dsmoe.model.checkpoint_folder import LATEST, step_of, tag_of
from dsmoe.model.curves import Curves
from dsmoe.model.kept_names import STOP


def train_whole(folder: Path, stage: Stage) -> None:
    """From joining the process group to ``outcome.json``; does not return. As training's own."""
    run = start(folder, stage)
    wanted = read_json(folder / CASE)["kept"]
    first = resume(run, wanted["load"]) if wanted["load"] else 0
    curves = Curves(wanted["tensorboard"] if run.rank == 0 else None, first)
    last = run.case.iterations
    saved, held_out = first, None
    lines = (folder / ITERATIONS).open("a", encoding="utf-8", buffering=1)

    def report(line: dict[str, Any]) -> None:
        # by all processes, and only where somebody looks at it: it waits for the device
        routing = routed(run) if wanted["tensorboard"] else {}
        if run.rank == 0:
            lines.write(json.dumps(line) + "\n")
            rate = run.engine.optimizer.param_groups[0]["lr"]
            curves.iteration(line, rate, run.case.tokens_per_step, routing)

    def ends_after(done: int) -> bool:
        nonlocal saved, held_out
        asked = _asked_to_stop(run, folder)
        if asked or done == last or done % wanted["every"] == 0:
            run.stage.enter(f"in the checkpoint after iteration {done}", run.seconds)
            save(run, wanted["save"], done)
            saved = done
            if not asked:
                held_out = held_out_loss(run.engine, run.case, run.text, run.device)
                curves.held_out(done, held_out)
                if run.rank == 0 and held_out is not None and done != last:
                    say(run.rank, NOTE, f"held-out loss {held_out:.4f} after iteration {done}")
                check_held_out(held_out, done)
        return asked

    outcome = train(run, report, first, ends_after)
    lines.close()
    curves.close()
    if run.rank == 0:
        outcome.update(saved=saved, held_out_loss=held_out)
        write_json(folder / OUTCOME, outcome)
    stop(run)


def check_held_out(loss: float | None, done: int) -> None:
    """Raises TrainingFailed where iteration ``done`` left weights that give no finite loss."""
    if loss is not None and not math.isfinite(loss):
        raise TrainingFailed(
            f"the held-out loss is {loss} after iteration {done}; expected a finite number; its "
            "checkpoint is of no use: lower the learning rate, and train into another --save"
        )


def _asked_to_stop(run: Run, folder: Path) -> bool:
    """Whether the command has asked; rank 0 looks, so that all processes agree."""
    asked = torch.tensor([int(run.rank == 0 and (folder / STOP).exists())], device=run.device)
    dist.broadcast(asked, 0)
    return bool(asked.item())


def routed(run: Run) -> dict[str, list[Any]]:
    """The expert load and the dropped share by layer, of all processes' last micro-batch."""
    module = run.engine.module
    dropped = dropped_shares(module, run.device, run.data_size)
    return {"load": expert_load(module, run.device), "dropped": dropped}


def save(run: Run, folder: str, done: int) -> None:
    """Write the checkpoint after ``done`` iterations; every process calls it."""
    state = {"iterations": done, "seed": run.case.seed, "random": _random_states(run.device)}
    run.engine.save_checkpoint(folder, tag=tag_of(done), client_state=state)


def resume(run: Run, folder: str) -> int:
    """Load the last checkpoint in ``folder``; the iterations that it has. Raises TrainingFailed."""
    run.stage.words = "while the checkpoint is loaded"
    path, state = run.engine.load_checkpoint(folder)
    if path is None:
        raise TrainingFailed(f"{folder}: found no checkpoint to load; expected that of dsmoe train")
    done = int(state["iterations"])
    if done != step_of(Path(folder)):
        raise TrainingFailed(
            f"{path}: found the state after {done} iterations, expected that of the folder's name; "
            f"give the folder its name back, or write another one into {LATEST}"
        )
    states = state["random"]
    if len(states) == dist.get_world_size():
        cpu, *devices = states[run.rank]
        torch.set_rng_state(cpu)
        if devices and run.device.type == "cuda":
            torch.cuda.set_rng_state(devices[0], run.device)
    else:
        torch.manual_seed(run.case.seed + done)
    return done


def _random_states(device: torch.device) -> list[list[torch.Tensor]]:
    """Each process's random states: the CPU's and, on a GPU, the device's."""
    own = [torch.get_rng_state()]
    if device.type == "cuda":
        own.append(torch.cuda.get_rng_state(device))
    states = []
    for state in own:
        here = state.to(device)
        each = [torch.empty_like(here) for _ in range(dist.get_world_size())]
        dist.all_gather(each, here)
        states.append([one.cpu() for one in each])
    return [list(of_one) for of_one in zip(*states)]
