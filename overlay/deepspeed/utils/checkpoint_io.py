"""Read a checkpoint file as data, without running code in it; write a file completely or not.

torch reads pickles, and a pickle can call any function. Where torch has ``weights_only`` and a list
of allowed classes (2.5), only tensors, plain containers and the classes that DeepSpeed stores are
read. Older releases of torch read a file as DeepSpeed's own code does.
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
    """The classes that DeepSpeed's checkpoints contain besides tensors and plain containers."""
    return [LossScaler, DynamicLossScaler, set, torch.Size]


def load(path: Any, map_location: Any = None) -> Any:
    """``torch.load(path, map_location)`` without running code of the file.

    Raises RuntimeError naming the file if it is cut short, damaged, or contains anything that
    DeepSpeed does not store.
    """
    # torch 1.13 to 2.4 have weights_only but cannot allow a class: the loss scaler of a ZeRO
    # checkpoint could not be read at all, so weights_only is off there.
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
            "an earlier checkpoint"
        ) from error


def save(state: Any, path: Any) -> None:
    """``torch.save(state, path)``; if it is killed the former file remains."""
    beside = Path(f"{path}.tmp")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_latest(folder: Any, tag: str) -> None:
    """Write ``tag`` to the file ``latest`` of ``folder``, completely or not at all."""
    beside = Path(folder) / "latest.tmp"
    with beside.open("w") as file:
        file.write(tag)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(Path(folder) / "latest")


def state_value(saved: Any, parameter: torch.Tensor, group: dict[str, Any]) -> Any:
    """``saved``, an entry of an optimizer's state, in the form that loading expects.

    Tensors go to the parameter's device. Only a 0-dim one (the step) stays on the CPU, where
    torch's optimizers keep it unless the group says ``fused`` or ``capturable``.
    """
    if not torch.is_tensor(saved):
        return saved
    there = saved.dim() or group.get("fused") or group.get("capturable")
    return saved.detach().clone().to(parameter.device if there else "cpu")
