"""Read a checkpoint file as data, running no code in it; write one whole or not at all.

torch reads pickles, and a pickle can call anything. Where torch offers ``weights_only`` a file is
read with it, allowing beside tensors and plain containers just the classes that DeepSpeed stores.
Where torch is older than that (before 1.13) a file is read as the base reads it.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler

_HAS_WEIGHTS_ONLY = "weights_only" in inspect.signature(torch.load).parameters
_CAN_ALLOW = hasattr(getattr(torch, "serialization", None), "safe_globals")


def stored_classes() -> list[Any]:
    """The classes, beside tensors and plain containers, that DeepSpeed's checkpoints contain."""
    return [LossScaler, DynamicLossScaler, set, torch.Size]


def load(path: Any, map_location: Any = None) -> Any:
    """``torch.load(path, map_location)`` that refuses code.

    Raises RuntimeError naming the file where it is cut short, damaged, or holds anything that
    DeepSpeed does not store.
    """
    # torch 1.13 to 2.4 know weights_only but not how to allow a class: there the loss scaler of a
    # ZeRO checkpoint could not be read at all, so they read as the base does.
    strict = _HAS_WEIGHTS_ONLY and _CAN_ALLOW
    allowed = torch.serialization.safe_globals(stored_classes()) if strict else None
    kwargs = {"weights_only": True} if strict else {}
    if _HAS_WEIGHTS_ONLY and not strict:
        kwargs = {"weights_only": False}
    try:
        with allowed or contextlib.nullcontext():
            return torch.load(path, map_location=map_location, **kwargs)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0][:300]
        raise RuntimeError(
            f"checkpoint file {path} was refused: found content that DeepSpeed does not store "
            f"({reason}); expected tensors, plain containers and loss scalers. If you trust its "
            "origin, convert it first with torch.load(..., weights_only=False)"
        ) from error
    except FileNotFoundError:
        raise
    except (EOFError, OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:300]
        raise RuntimeError(
            f"checkpoint file {path} cannot be read ({reason}); it is cut short or damaged: load "
            "the checkpoint before it"
        ) from error


def save(state: Any, path: Any) -> None:
    """``torch.save(state, path)`` that leaves a whole file or the former one, also when killed."""
    beside = Path(f"{path}.tmp")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_latest(folder: Any, tag: str) -> None:
    """Name ``tag`` in the file ``latest`` of ``folder``, whole or not at all."""
    beside = Path(folder) / "latest.tmp"
    with beside.open("w") as file:
        file.write(tag)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(Path(folder) / "latest")


def state_value(saved: Any, parameter: torch.Tensor, group: dict[str, Any]) -> Any:
    """``saved``, an entry of an optimizer's state, as the optimizer expects it on loading.

    Tensors go to the parameter's device. Only a 0-dim one (the step) stays on the CPU, where
    torch's optimizers keep it unless the group says ``fused`` or ``capturable``.
    """
    if not torch.is_tensor(saved):
        return saved
    there = saved.dim() or group.get("fused") or group.get("capturable")
    return saved.detach().clone().to(parameter.device if there else "cpu")
