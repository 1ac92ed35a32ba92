"""Read a checkpoint file as data, without running code in it; write a file completely or not.

torch reads pickles, and a pickle can call anything: plain_pickle.py says what it may name.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import plain_pickle


def load(path: Any, map_location: Any = None) -> Any:
    """``torch.load(path, map_location)`` without running code of the file.

    Raises RuntimeError naming the file if it is cut short, damaged, or contains anything that
    DeepSpeed does not store.
    """
    try:
        return plain_pickle.read(path, map_location)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0][:300]
        raise RuntimeError(
            f"checkpoint file {path} was refused: found content that DeepSpeed does not store "
            f"({reason}); expected tensors, plain data and loss scalers. If you trust its "
            "origin, convert it first with torch.load(..., weights_only=False)"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"checkpoint file {path} is missing, expected it beside the others: copy the whole"
            " folder, or load another tag"
        ) from error
    except (EOFError, OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:300]
        raise RuntimeError(
            f"checkpoint file {path} cannot be read ({reason}); it is cut short or damaged: load "
            "an earlier checkpoint"
        ) from error


#: SHA-256 of what :func:`save` has written, by path; finish_saving takes them out again.
digests: dict[str, str] = {}


class _Hashing:
    """A file to write to, and the SHA-256 of what was written."""

    def __init__(self, file: Any) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> Any:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(state: Any, path: Any) -> None:
    """``torch.save(state, path)``; if it is killed the former file remains."""
    beside = Path(f"{path}.tmp")
    with beside.open("wb") as file:
        hashing = _Hashing(file)
        torch.save(state, hashing)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    digests[str(path)] = hashing.sha256.hexdigest()


def write_latest(folder: Any, tag: str) -> None:
    """Write ``tag`` to the file ``latest`` of ``folder``, completely or not at all."""
    write_whole(Path(folder) / "latest", tag.encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, completely or not at all, and durably."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def state_value(saved: Any, parameter: torch.Tensor, group: dict[str, Any]) -> Any:
    """``saved``, an entry of an optimizer's state, in the form that loading expects.

    Tensors go to the parameter's device. Only a 0-dim one (the step) stays on the CPU, where
    torch's optimizers keep it unless the group says ``fused`` or ``capturable``.
    """
    if not torch.is_tensor(saved):
        return saved
    there = saved.dim() or group.get("fused") or group.get("capturable")
    return saved.detach().clone().to(parameter.device if there else "cpu")
