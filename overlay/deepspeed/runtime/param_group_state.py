"""The settings of an optimizer's parameter groups in ZeRO's checkpoint files.

ZeRO keeps its partitions in place of the parameters of each group, so it cannot store torch's
``state_dict`` of the optimizer. It stored the state of the partitions and left the groups out: a
resumed run started at the learning rate of the configuration. Here the groups travel without their
parameters.
"""

from __future__ import annotations

from typing import Any, Iterable

import torch

#: Entry of a ZeRO checkpoint file that holds what :func:`groups_to_save` returns.
KEY = "param_groups"


def groups_to_save(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """A dictionary for each parameter group: all that it holds but the parameters.

    NumPy numbers become Python's. Values that are neither tensors nor plain data are left out, for
    a checkpoint file is read as data: on loading they stay as the program has set them.
    """
    saved = []
    for group in optimizer.param_groups:
        values = {key: _plain(value) for key, value in group.items() if key != "params"}
        saved.append({key: value for key, value in values.items() if value is not _NOT_PLAIN})
    return saved


def restore_groups(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put what :func:`groups_to_save` returned for ``state``, a ZeRO state, into the groups.

    A state of before this entry existed changes nothing. Raises RuntimeError where the numbers of
    groups differ.
    """
    saved = state.get(KEY)
    if saved is None:
        return
    groups = optimizer.param_groups
    if len(saved) != len(groups):
        raise RuntimeError(
            f"the checkpoint's optimizer has {len(saved)} parameter groups, expected {len(groups)}"
            " as here: resume with the groups that saved it, or pass load_optimizer_states=False"
        )
    for group, values in zip(groups, saved):
        for key, value in values.items():
            present = group.get(key)
            if torch.is_tensor(value) and torch.is_tensor(present):
                # in place: a captured step reads the rate from this very tensor
                present.detach().copy_(value)
            else:
                group[key] = value.clone() if torch.is_tensor(value) else value


_NOT_PLAIN = object()


def _any_foreign(values: Iterable[Any]) -> bool:
    return any(value is _NOT_PLAIN for value in values)


def _plain(value: Any) -> Any:
    if torch.is_tensor(value):
        return value.detach().clone()
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return _NOT_PLAIN if _any_foreign(items) else type(value)(items)
    if isinstance(value, dict):
        entries = {key: _plain(item) for key, item in value.items()}
        return _NOT_PLAIN if _any_foreign(entries.values()) else entries
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not value.shape:
        return value.item()
    return value if value is None or isinstance(value, (bool, int, float, str)) else _NOT_PLAIN
