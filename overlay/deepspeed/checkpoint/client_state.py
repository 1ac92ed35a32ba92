"""What a user may put into a checkpoint: refused at saving where it could not be loaded."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.expert_layout import check_checkpoint
from deepspeed.utils import plain_pickle

#: DeepSpeed's own entries, which load_checkpoint returns with the user's: those of the engine that
#: saves are kept where a user gives back what was loaded.
RETURNED = {
    "buffer_names",
    "ds_config",
    "ds_data_loader",
    "ds_version",
    "global_samples",
    "num_experts",
}
OWN = {
    "module",
    "optimizer",
    "lr_scheduler",
    "sparse_tensor_module_names",
    "skipped_steps",
    "global_steps",
    "dp_world_size",
    "mp_world_size",
}
KINDS = (
    "numbers, text, bytes, tensors, NumPy scalars and arrays, Namespace, Path, date and time,"
    " Decimal, and tuples, lists, sets, dicts, deque, defaultdict and Counter of these"
)


def check_client_state(engine: Any, client_state: dict[str, Any]) -> None:
    """Refuse, on all processes, what a checkpoint would hold and could not be loaded.

    All processes must call it before anything is written; a refusal on one alone would leave the
    others waiting.

    Raises:
        TypeError: naming the key and the class.
        ValueError: for a key that is DeepSpeed's own.
        RuntimeError: for ZeRO's state of experts in layout across hosts.
    """
    check_checkpoint(engine)
    scheduler = engine.lr_scheduler
    state = {} if scheduler is None else {"lr_scheduler": scheduler.state_dict()}
    error = _own_key(client_state) or _unloadable({**client_state, **state})
    refused = torch.tensor([int(error is not None)], device=engine.device)
    dist.all_reduce(refused, op=dist.ReduceOp.MAX)
    if error is not None:
        raise error
    if refused.item():
        raise TypeError("the client_state of another process was refused; see what it says")


def add_client_state(state: dict[str, Any], client_state: dict[str, Any]) -> None:
    """Put the user's entries beside the engine's own in ``state``."""
    state.update((key, value) for key, value in client_state.items() if key not in RETURNED)


def _own_key(client_state: Any) -> Exception | None:
    if not isinstance(client_state, dict):
        return TypeError(f"client_state is of {type(client_state).__name__}, expected a dict")
    taken = sorted(OWN.intersection(client_state))
    if not taken:
        return None
    return ValueError(
        f"client_state has the key {taken[0]!r}, under which a checkpoint keeps DeepSpeed's own;"
        " expected other keys: choose another"
    )


def _unloadable(state: dict[str, Any]) -> Exception | None:
    for key, value in state.items():
        found = _refused_class(_without_tensors(value))
        if found:
            where = f"client_state[{key!r}]" if key != "lr_scheduler" else "the scheduler's state"
            return TypeError(
                f"{where} holds {found}, which no checkpoint is read with; expected {KINDS}:"
                " save what it is made from"
            )
    return None


def _refused_class(value: Any) -> str | None:
    """The class in ``value`` with which it could not be read; None if it can be."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except Exception as error:  # pickle raises what it likes: TypeError, AttributeError, …
        return f"an object that cannot be pickled ({str(error).splitlines()[0]})"
    buffer.seek(0)
    try:
        plain_pickle.read(buffer)
    except pickle.UnpicklingError as error:
        return str(error)
    return None


def _without_tensors(value: Any) -> Any:
    """``value`` with None for tensors in plain containers: these load, and may be large."""
    if type(value) is torch.Tensor:
        return None
    if type(value) is dict:
        return {key: _without_tensors(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_without_tensors, value))
    return value
