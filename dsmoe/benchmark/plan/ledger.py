"""Counts the bytes of live tensors, real ones or such without storage (device ``meta``), by kind.

The same count serves the plan (meta tensors) and its test (a real step on the CPU), so that the
two can be compared; the allocator's rounding and its free blocks are not part of it.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

OTHER = "activations"
# Operator of c10d, or of overlay/deepspeed/moe/gshard/all_to_all.py -> what the table calls it.
COLLECTIVES = {
    "all_to_all": "all-to-all",
    "alltoall_base_": "all-to-all",
    "alltoall_": "all-to-all",
    "reduce_": "reduce",
    "allreduce_": "all-reduce",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "reduce_scatter_": "reduce-scatter",
}


class Ledger(TorchDispatchMode):
    """A context that sees every tensor operation, those of the backward pass too.

    ``live`` and ``peak`` are bytes; ``peak_kinds`` is what lived at the peak, by the kind that
    was set (:meth:`kind`) when the storage was made. ``sent`` has the bytes of the tensors handed
    to collectives, by collective; a tensor of a process group of one process counts too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.kinds: dict[str, int] = {}
        self.peak = 0
        self.peak_kinds: dict[str, int] = {}
        # The most that lived of each kind, at whatever moment.
        self.most: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self._kind = OTHER
        # storage -> [its kind], a list so that the kind can change while the storage lives
        self._known: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def kind(self, name: str) -> Iterator[None]:
        """New storages inside are counted as ``name``."""
        before, self._kind = self._kind, name
        try:
            yield
        finally:
            self._kind = before

    def restart(self) -> None:
        """Forget the peak and what was sent; what lives stays counted."""
        self.peak, self.peak_kinds, self.sent = self.live, dict(self.kinds), {}
        self.most = dict(self.kinds)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "dsmoe"):
            self._count(func._schema.name.split("::")[1], args)
        for value in tree_flatten(out)[0]:
            if isinstance(value, torch.Tensor):
                self.add(value)
        return out

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of ``tensor`` until it is freed; at most once."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size, kind = storage.nbytes(), self._kind
        self._known[storage] = cell = [kind]
        weakref.finalize(storage, self._gone, size, cell).atexit = False
        self.live += size
        self._grow(kind, size)
        if self.live > self.peak:
            self.peak, self.peak_kinds = self.live, dict(self.kinds)

    def move(self, tensor: torch.Tensor, kind: str) -> None:
        """Count the storage of ``tensor``, which is known, as ``kind`` from now on."""
        storage = tensor.untyped_storage()
        cell = self._known[storage]
        self.kinds[cell[0]] -= storage.nbytes()
        self._grow(kind, storage.nbytes())
        cell[0] = kind

    def _grow(self, kind: str, size: int) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + size
        self.most[kind] = max(self.most.get(kind, 0), self.kinds[kind])

    def _gone(self, size: int, cell: list[str]) -> None:
        self.live -= size
        self.kinds[cell[0]] -= size

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        what = COLLECTIVES.get(name)
        if what is None:
            return
        # The input is the first argument, or the second where the first is the output.
        at = 1 if name in ("alltoall_base_", "alltoall_", "allgather_", "_allgather_base_") else 0
        tensors = [t for t in tree_flatten(args[at])[0] if isinstance(t, torch.Tensor)]
        size = sum(t.numel() * t.element_size() for t in tensors)
        self.sent[what] = self.sent.get(what, 0) + size
