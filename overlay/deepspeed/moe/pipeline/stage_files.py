"""Checkpoints of a pipeline: by parameter, so that any stages, experts and processes load them.

``pipeline_model_states.pt`` says what there is: the engine's counters, the loss scale, the
schedule, the shapes, and which file has which parameters. ``pipeline_NNNN_optim_states.pt`` has the
pieces of one process: fp32 masters, and for each of them what the optimizer keeps. A process that
loads reads the files with pieces of its own parameters, and finds its elements there: no value
changes. Of equal copies (ZeRO-0, the tied embedding) one is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.checkpoint.client_state import check_client_state
from deepspeed.checkpoint.loading import check_files, gather
from deepspeed.checkpoint.saving import begin_saving, finish_saving
from deepspeed.runtime import schedule_state
from deepspeed.runtime.fp16.scale_state import resume_scaler
from deepspeed.utils.checkpoint_io import load, save, write_latest
from deepspeed.utils.pipeline_weights import MODEL, file_of
from torch import Tensor

from .optimizer_pieces import restore, saved_pieces
from .pieces import copy_into, pieces, wholes

FORMAT = 1
_COUNTERS = ("global_steps", "global_samples", "skipped_steps", "micro_steps")


def save_pipeline(
    engine: Any, folder: Any, tag: Any, client_state: dict[str, Any], latest: bool
) -> None:
    """Write the checkpoint ``tag``; every process of every stage calls it.

    Raises TypeError or ValueError for a client_state that could not be loaded, RuntimeError where
    the files cannot be written.
    """
    check_client_state(engine, client_state)
    tag = str(f"global_step{engine.global_steps}" if tag is None else tag)
    Path(folder).mkdir(parents=True, exist_ok=True)
    staging = begin_saving(folder, tag)
    place = Path(folder) / staging
    own = saved_pieces(engine)
    shapes = [
        {w.name: w.shape for w in wholes(engine, i)}
        for i in range(len(engine.optimizer.single_partition_of_fp32_groups))
    ]
    told = gather((sorted({name for name, *_ in own["pieces"]}), shapes))
    name = file_of(dist.get_rank())
    if own["pieces"]:
        save(own, place / name)
    if dist.get_rank() == 0:
        found = {file_of(rank): names for rank, (names, _) in enumerate(told) if names}
        known = {n: shape for _, parts in told for part in parts for n, shape in part.items()}
        save(
            {**_common(engine), "files": found, "shapes": known, "client": client_state},
            place / MODEL,
        )
    finish_saving(folder, tag, staging)
    if latest and dist.get_rank() == 0:
        write_latest(folder, tag)


def load_pipeline(
    engine: Any, folder: Any, tag: Any, optimizer: bool, scheduler: bool
) -> tuple[str | None, Any]:
    """Load the checkpoint ``tag`` (None: the latest); its folder and client_state.

    (None, None) where there is no checkpoint at all. Raises RuntimeError for one of another kind or
    model, and for files that are missing or damaged.
    """
    place = _find(Path(folder), tag)
    if place is None:
        return None, None
    check_files(engine, place.parent, place.name, not optimizer)
    model = load(place / MODEL, map_location="cpu")
    _agree(_problem(engine, model, place, optimizer, scheduler))
    mine = list(pieces(engine))
    wanted = {piece.name for piece in mine}
    partitions = engine.optimizer.single_partition_of_fp32_groups
    left = {piece: piece.length for piece in mine}
    kept: list[dict[str, Any]] = []
    for name, held in model["files"].items():
        if wanted.isdisjoint(held):
            continue
        part = load(place / name, map_location="cpu")
        by_name: dict[str, list[tuple[int, Tensor]]] = {}
        for key, start, values in part["pieces"]:
            by_name.setdefault(key, []).append((start, values))
        for piece in mine:
            target = partitions[piece.group].data[piece.place : piece.place + piece.length]
            for start, values in by_name.get(piece.name, []):
                left[piece] -= copy_into(target, piece, start, values)
        del part["pieces"]
        kept.append(part)
    missing = [piece.name for piece, count in left.items() if count]
    _agree(f"{place} lacks elements of {missing[0]}: copy the whole folder" if missing else None)
    if optimizer:
        restore(engine, kept, place)
        resume_scaler(engine.optimizer.loss_scaler, model["loss_scaler"])
        for counter in _COUNTERS:
            setattr(engine, counter, model[counter])
    rates = schedule_state.before_loading(engine, scheduler)
    if scheduler and engine.lr_scheduler is not None:
        engine.lr_scheduler.load_state_dict(model["lr_scheduler"])
        schedule_state.apply(engine.lr_scheduler)
    schedule_state.after_loading(engine, rates)
    engine.optimizer.share_masters()
    return str(place), model["client"]


def _common(engine: Any) -> dict[str, Any]:
    scheduler = engine.lr_scheduler
    return {
        "format": FORMAT,
        **{counter: getattr(engine, counter) for counter in _COUNTERS},
        "loss_scaler": engine.optimizer.loss_scaler,
        "lr_scheduler": None if scheduler is None else scheduler.state_dict(),
        "optimizer": type(engine.basic_optimizer).__name__,
    }


def _find(folder: Path, tag: Any) -> Path | None:
    latest = folder / "latest"
    if tag is None:
        if not latest.is_file():
            return None
        tag = latest.read_text(errors="replace").strip()
    place = folder / str(tag)
    if (place / MODEL).is_file():
        return place
    tags = sorted(path.parent.name for path in folder.glob(f"*/{MODEL}"))
    if place.is_dir():
        raise RuntimeError(
            f"the checkpoint {place} was saved without a pipeline, expected one that a pipeline"
            " saved: go on without stages"
        )
    raise RuntimeError(
        f"{folder} has no checkpoint {tag!r}, expected one of {', '.join(tags) or 'some'}: pass"
        " another tag, or another folder"
    )


def _agree(problem: str | None) -> None:
    """Raise RuntimeError on all processes where one has a ``problem``: none goes on alone."""
    problems = [found for found in gather(problem) if found]
    if problems:
        raise RuntimeError(problems[0])


def _problem(
    engine: Any, model: dict[str, Any], place: Path, optimizer: bool, scheduler: bool
) -> str | None:
    """Why the checkpoint ``model`` does not fit this process's stage; None where it does."""
    if model.get("format") != FORMAT:
        return f"{place} has format {model.get('format')!r}, expected {FORMAT}"
    known = model["shapes"]
    for i in range(len(engine.optimizer.single_partition_of_fp32_groups)):
        for whole in wholes(engine, i):
            if known.get(whole.name) != whole.shape:
                return (
                    f"the checkpoint {place} has {whole.name} as"
                    f" {known.get(whole.name, 'no weight')}, expected {whole.shape} as here: make"
                    " the model as it was"
                )
    here = type(engine.basic_optimizer).__name__
    if optimizer and model["optimizer"] != here:
        return (
            f"the checkpoint {place} has the state of {model['optimizer']}, expected that of {here}"
            " as here: take that optimizer, or pass load_optimizer_states=False"
        )
    if scheduler and model["lr_scheduler"] is None and engine.lr_scheduler is not None:
        return (
            f"the checkpoint {place} has no state of a scheduler, expected one of"
            f" {type(engine.lr_scheduler).__name__} as here: pass load_lr_scheduler_states=False"
        )
    return None
