"""Say in one line why a checkpoint does not fit, before anything of it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepspeed.moe.expert_layout import check_checkpoint
from deepspeed.utils import logger
from deepspeed.utils.checkpoint_io import load
from deepspeed.utils.fp32_weights import FORMER, SAVING, advice, tag_folder
from deepspeed.utils.pipeline_weights import MODEL

_WEIGHTS_ONLY = "or load the weights alone with load_module_only=True"


def find_tag(engine: Any, folder: Any, tag: Any) -> Any:
    """The tag to load from ``folder``: ``tag``, or what the file ``latest`` names.

    None where there is no checkpoint at all, as at the first start of a run.

    Raises:
        RuntimeError: where there are checkpoints and none of that tag, with their tags; where the
            folder of the tag has no weights.
    """
    folder = Path(folder)
    found = {path.parent.name for path in folder.glob("*/*_states.pt")}
    tags = sorted(tag for tag in found if SAVING not in tag and not tag.endswith(FORMER))
    latest = folder / "latest"
    if tag is None and latest.is_file():
        tag = latest.read_text(errors="replace").strip()
    elif tag is None and tags:
        raise RuntimeError(
            f"{folder} has no file latest and holds the tags {_few(tags)}, expected one of the two"
            " to say which: pass tag=..."
        )
    elif tag is None:
        logger.warning(f"{folder} holds no checkpoint (no file latest): nothing is loaded")
        return None
    place = tag_folder(folder, str(tag))
    if place.name.endswith(FORMER) and place != folder / str(tag):
        logger.warning(f"saving {tag} was interrupted: {place}, the one before, is loaded")
        tag = str(tag) + FORMER
    if not str(tag) or not place.is_dir():
        raise RuntimeError(
            f"{folder} has no checkpoint {tag!r}, expected one of"
            f" {_few(tags) or 'some, but it holds none'}: pass another tag, or another folder"
        )
    if not engine._get_all_ckpt_names(folder, tag):
        _refuse_without_weights(engine, folder / str(tag))
    return tag


def _refuse_without_weights(engine: Any, folder: Path) -> None:
    if (folder / MODEL).is_file():
        raise RuntimeError(
            f"the checkpoint {folder} was saved by a pipeline, expected one without stages as here:"
            " go on with a pipeline, of any number of stages"
        )
    here = engine.zero_optimization_stage()
    spread = any(folder.glob("zero_pp_rank_*_model_states.pt"))
    if spread or any(folder.glob("mp_rank_*_model_states.pt")):
        there = "ZeRO stage 3" if spread else "a ZeRO stage below 3"
        raise RuntimeError(
            f"the checkpoint {folder} was saved at {there}, expected stage {here} as here: resume"
            " with the stage that saved it, or load what zero_to_fp32.py makes of it"
        )
    raise RuntimeError(
        f"{folder} has no mp_rank_00_model_states.pt, expected it beside the others: copy the whole"
        f" folder; {advice(folder)}"
    )


def check_contents(
    engine: Any, checkpoint: Any, folder: Any, tag: Any, optimizer: bool, scheduler: bool
) -> None:
    """Refuse a ``checkpoint`` (its first file's contents) that does not fit ``engine``.

    ``optimizer`` and ``scheduler`` say whether their states are to be loaded.

    Raises:
        RuntimeError: for other experts, another ZeRO stage or precision where the optimizer's
            state depends on them, missing files of ZeRO, no state of a scheduler, or ZeRO's state
            of experts in layout across hosts.
    """
    place = Path(folder) / str(tag)
    if not isinstance(checkpoint, dict) or "module" not in checkpoint:
        raise RuntimeError(f"{place} holds no weights of DeepSpeed's, expected a key 'module'")
    _check_experts(engine, checkpoint, place)
    if optimizer and engine.optimizer is not None:
        check_checkpoint(engine)
        _check_optimizer(engine, checkpoint, place)
    saved = checkpoint.get("lr_scheduler")
    if scheduler and engine.lr_scheduler is not None and saved is None:
        raise RuntimeError(
            f"the checkpoint {place} has no state of a scheduler, expected one of"
            f" {type(engine.lr_scheduler).__name__} as here: pass load_lr_scheduler_states=False"
        )
    if scheduler and engine.lr_scheduler is None and saved is not None:
        logger.warning(f"the checkpoint {place} has a scheduler's state and here is no scheduler")


def _check_experts(engine: Any, checkpoint: dict[str, Any], place: Path) -> None:
    there = checkpoint.get("num_experts") or 0
    here = engine.num_experts if engine.has_moe_layers else 0
    if there != here:
        raise RuntimeError(
            f"the checkpoint {place} is of a model with {there or 'no'} experts, expected"
            f" {here or 'none'} as here: make the model as it was"
        )
    names = [engine._get_expert_ckpt_name(place.parent, i, place.name) for i in range(here)]
    _check_files(names, "experts", "or load another tag")


def _check_files(names: list[str], kind: str, otherwise: str) -> None:
    """Refuse if some of the files ``names`` are missing, one for each of a ``kind``."""
    missing = [name for name in names if not Path(name).exists()]
    if missing:
        raise RuntimeError(
            f"{missing[0]} is missing; found the files of {len(names) - len(missing)} {kind},"
            f" expected {len(names)}: copy the whole folder, {otherwise}"
        )


def _check_optimizer(engine: Any, checkpoint: dict[str, Any], place: Path) -> None:
    stage = engine.zero_optimization_stage()
    files = list(place.glob("zero_pp_rank_*optim_states.pt"))
    own = _own_state(engine, checkpoint, place)
    # A tag that is saved again under another stage keeps the files of ZeRO; ``own`` is of the last.
    if not stage and files and own is None:
        raise RuntimeError(
            f"the checkpoint {place} was saved under ZeRO, expected stage 0 as here: set the stage"
            f" that saved it, {_WEIGHTS_ONLY}"
        )
    if stage and own is not None:
        raise RuntimeError(
            f"the checkpoint {place} was saved without ZeRO, expected stage {stage} as here: set"
            f" stage 0, {_WEIGHTS_ONLY}"
        )
    if stage and files:
        rank = 0 if engine.mpu is None else engine.mpu.get_model_parallel_rank()
        names = engine._get_mp_rank_zero_checkpoint_names(
            str(place.parent), place.name, rank, checkpoint["dp_world_size"]
        )
        former = {path.name for path in files}  # names without the second underscore
        names = [n for n in names if Path(n).name.replace("_optim", "optim") not in former]
        _check_files(names, "processes", f"load another tag, {_WEIGHTS_ONLY}")
    if stage or not isinstance(own, dict):
        return
    there = "param_groups" not in own
    here = engine.fp16_enabled() or engine.bfloat16_enabled()
    if there != here and not engine.amp_enabled():
        names = ("fp32", "a 16-bit precision")
        raise RuntimeError(
            f"the optimizer's state in {place} was saved in {names[there]}, expected {names[here]}"
            f" as here: set the precision that saved it, {_WEIGHTS_ONLY}"
        )


def _own_state(engine: Any, checkpoint: dict[str, Any], place: Path) -> Any:
    """The optimizer's state that the engine itself saved; None where ZeRO did."""
    if not engine.has_moe_layers:
        return checkpoint.get("optimizer")
    path = engine._get_optimizer_ckpt_name(place.parent, place.name, 0)
    return load(path, map_location="cpu")["optimizer"]


def _few(tags: list[str]) -> str:
    return ", ".join(tags[-5:]) + (f" and {len(tags) - 5} more" if len(tags) > 5 else "")
