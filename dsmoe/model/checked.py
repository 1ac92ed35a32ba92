"""What is checked of a model's folder before anything is built from its files."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Iterator, Mapping

from dsmoe.common.errors import DsmoeError, EnvironmentProblem, ResultsError
from dsmoe.common.files import read_input, refuse_irregular
from dsmoe.common.overlay_modules import model_sizes

#: The description in a folder that dsmoe export wrote.
EXPORTED = "config.json"
WEIGHTS = "model.safetensors"
#: The folder in it that an export has until its files are whole.
STAGE = ".export.tmp"
_ARCHITECTURE = "MoELM"
_SIZES = ("hidden_size", "num_layers", "num_experts", "vocab_size", "sequence_length")
_MORE = ("ffn_multiplier", "moe_every")
_PRECISIONS = ("fp32", "fp16", "bf16")
_LEAST_BYTES = 2  # of a weight, in bf16 and fp16


def is_exported(folder: Path) -> bool:
    """Whether ``folder`` has the description of an exported model; other programs have a file of
    the same name."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads(read_input(folder / EXPORTED))
        return isinstance(values, dict) and values.get("architecture") == _ARCHITECTURE
    return False


def read_exported(folder: Path) -> dict[str, Any]:
    """``config.json`` of an exported model: "model", "precision" and "tokenizer" are of the right
    kinds, and the weights beside it are large enough. Raises ResultsError."""
    place = folder / EXPORTED
    try:
        values = json.loads(read_input(place))
        if values.get("unfinished"):
            raise ValueError("an export to this folder was broken off; repeat it")
        model, tokenizer = values["model"], values.get("tokenizer")
        for kind, value in ((dict, model), (str, values["precision"]), (str, tokenizer or "")):
            if not isinstance(value, kind):
                raise TypeError(f"found {str(value)[:40]!r}, expected {kind.__name__}")
        if values["precision"] not in _PRECISIONS:
            raise ValueError(f"found {values['precision'][:40]!r}, expected fp32, fp16 or bf16")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ResultsError(
            f"{place}: cannot be read ({_words(error)}); expected what dsmoe export writes"
        ) from error
    check_size(model, folder)
    return {**values, "tokenizer": tokenizer}


def check_size(model: Mapping[str, Any], files: Path) -> None:
    """Raises ResultsError where the folder ``files`` cannot hold the weights of ``model``.

    ``model`` has the fields of MoELMConfig. An absurd size would use up all memory before its
    weights are found to be missing. Names that are no regular files are refused too.
    """
    sizes = {name: model[name] for name in (*_SIZES, *_MORE) if name in model}
    odd = [f"{name} {str(value)[:40]}" for name, value in sizes.items() if not _is_size(value)]
    missing = [name for name in _SIZES[:3] if name not in sizes]
    if odd or missing:
        words = ", ".join(odd + [f"no {name}" for name in missing])
        raise ResultsError(
            f"{files}: found a model with {words}; expected whole numbers, 1 or more"
        )
    try:
        places = [place for place in files.iterdir() if not place.is_dir()]
        for place in places:
            refuse_irregular(place)
        there = sum(place.stat().st_size for place in places)
    except OSError as error:
        raise ResultsError(
            f"{error.filename or files}: cannot be read ({error.strerror}); expected the files of "
            "a trained model"
        ) from error
    wanted = int(model_sizes().count_parameters(**sizes))
    if there < _LEAST_BYTES * wanted:
        raise ResultsError(
            f"{files}: found {there:,} bytes; expected at least {_LEAST_BYTES * wanted:.4g} for "
            f"the {wanted:.4g} parameters of its model: files are missing or cut short"
        )


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 10**12


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever else the files ``what`` make torch, pickle or safetensors raise, in one line."""
    try:
        yield
    except (DsmoeError, MemoryError):
        raise
    except ImportError as error:
        raise EnvironmentProblem(f"{what}: {error}") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ResultsError(
            f"{what}: {where}{_words(error)}; expected a file or folder that can be used so: "
            "correct its rights, free space, or name another"
        ) from error
    except Exception as error:
        raise ResultsError(f"{what}: {_words(error)}") from error


def _words(error: Exception) -> str:
    """What ``error`` says; with its kind, where the text alone may say nothing."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = " ".join(str(error).split())[:300]
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"
