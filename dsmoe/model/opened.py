"""A trained model in this process, from a folder of checkpoints or an exported one."""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from dsmoe.benchmark.data.tokenizer import load_tokenizer
from dsmoe.benchmark.run import patched_deepspeed
from dsmoe.common.errors import UsageError
from dsmoe.common.files import read_large
from dsmoe.common.places import chosen_checkout
from dsmoe.model import checkpoint_folder as kept
from dsmoe.model.checked import (
    EXPORTED,
    STAGE,
    WEIGHTS,
    check_size,
    is_exported,
    read_exported,
    reading,
)


@dataclass(frozen=True)
class Opened:
    """``model`` is a MoELM in evaluation mode on ``device``; ``tokenizer`` is the file of its
    ``encoder`` (None: bytes); ``words`` say where it comes from; ``training``: what its folder says
    of it, where dsmoe train wrote it."""

    model: Any
    encoder: Any
    tokenizer: str | None
    device: str
    words: str
    training: kept.Kept | None = None


def let_import_deepspeed() -> None:
    """Let this process import the patched DeepSpeed, quietly. Raises what apply raises."""
    place, _ = chosen_checkout()
    patched_deepspeed.ensure(place, lambda words: None)
    sys.path.insert(0, str(place))
    logging.disable(logging.WARNING)


def open_model(folder: Path) -> Opened:
    """The model in ``folder``. Raises DsmoeError for another folder and for a broken one."""
    before = values = None
    if (folder / EXPORTED).is_file():
        values = read_exported(folder)
    else:
        before = _whole(folder)
    let_import_deepspeed()
    import torch
    from deepspeed.moe.lm import MoELM, MoELMConfig, checkpoint_weights, model_of

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with reading(str(folder)):
        if values is not None:
            model = MoELM.from_exported(folder)
            tokenizer = folder / values["tokenizer"] if values["tokenizer"] else None
            words = f"exported model in {folder}"
        else:
            assert before is not None
            config = MoELMConfig(**before.case.model_settings())
            place, precision = folder / kept.tag_of(before.step), before.case.weight_precision
            weights = checkpoint_weights(MoELM, place, config, precision)
            model = model_of(MoELM, weights, config, precision, place)
            tokenizer, words = before.tokenizer, f"iteration {before.step} of {folder}"
    if device == "cpu" and model.embedding.weight.dtype == torch.float16:
        model, words = model.float(), f"{words}, in fp32 (a CPU)"
    name = str(tokenizer) if tokenizer else None
    return Opened(model.to(device), load_tokenizer(name), name, device, words, before)


def _whole(folder: Path) -> kept.Kept:
    """What ``folder`` of dsmoe train says, whose last checkpoint can be as large as that."""
    before = kept.read_kept(folder)
    check_size(before.case.model_settings(), folder / kept.tag_of(before.step))
    return before


def names_of_others(to: Path) -> list[str]:
    """What is in the folder ``to`` that an export must not touch: nothing where a model was
    exported to it; what a killed export leaves does not count. Raises OSError."""
    names = {path.name for path in to.iterdir()} if to.exists() else set()
    if EXPORTED in names and is_exported(to):
        return []
    return sorted(names - {STAGE, f"{EXPORTED}.tmp"})


@contextlib.contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[None]:
    """Where the body fails: without what it wrote to ``folder``, if no model was there before."""
    new, there = not (folder / EXPORTED).exists(), folder.exists()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for name in (WEIGHTS, EXPORTED, kept.TOKENIZER) if new else ():
                (folder / name).unlink(missing_ok=True)
            if not there:
                folder.rmdir()
        raise


def export_model(source: Path, to: Path) -> int:
    """Write the last checkpoint of ``source`` to ``to``; its parameters. Raises DsmoeError."""
    before = _whole(source)
    try:
        others = names_of_others(to)
    except OSError as error:
        raise UsageError(f"--to {to}: {error.strerror}; expected a folder, or a new name") from None
    if others:
        raise UsageError(
            f"{to}: found other files there ({', '.join(others[:3])}); expected a new folder, or "
            "an exported one"
        )
    let_import_deepspeed()
    with reading(f"{source}: cannot be exported to {to}"), _whole_or_nothing(to):
        from deepspeed.moe.lm import MoELM, MoELMConfig, export

        more = {
            "tokenizer": kept.TOKENIZER if before.tokenizer else None,
            "iterations": before.step,
            "content": before.content,
        }
        config = MoELMConfig(**before.case.model_settings())
        place = source / kept.tag_of(before.step)
        beside = {kept.TOKENIZER: read_large(before.tokenizer)} if before.tokenizer else {}
        precision = before.case.weight_precision
        return int(export(MoELM, place, to, config, precision, more, beside))
