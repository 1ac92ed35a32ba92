"""Epochs of DeepSpeed's data loader: another order each, and the same after a resume.

The order of epoch e depends on the sampler's seed and on e alone. The place of a run, its epoch and
the samples that were taken of it, goes into the checkpoint; a resumed loader goes on there, also on
another number of processes (``DistributedSampler`` deals one permutation round by round).
"""

from __future__ import annotations

import itertools
from typing import Any, Iterator

#: Entry of a checkpoint with what :meth:`Position.state_dict` returns.
KEY = "ds_data_loader"


def batches(loader: Any) -> int:
    """How many batches an epoch of ``loader`` has."""
    samples, size = len(loader.data_sampler), loader.batch_size
    return samples // size if loader.dataloader_drop_last else -(-samples // size)


def save(engine: Any, state: dict[str, Any]) -> None:
    """Put the place of the engine's training loader into ``state``, if it has one."""
    position = _position(engine)
    if position is not None:
        state[KEY] = position.state_dict()


def load(engine: Any, state: dict[str, Any]) -> None:
    """Take the place out of ``state``, a checkpoint, and go there; without one nothing changes."""
    place = state.pop(KEY, None)
    position = _position(engine)
    if place is not None and position is not None:
        position.load_state_dict(place)


def _position(engine: Any) -> Position | None:
    loader = engine.training_dataloader
    # pipelines wrap theirs in a RepeatingLoader
    return getattr(getattr(loader, "loader", loader), "position", None)


class Position:
    """Where in which epoch a ``DeepSpeedDataLoader`` is. An epoch that was begun and is asked for
    again (a loop that was left early) is over: the next one begins."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.epoch = 0
        self.taken = 0  # batches of this epoch
        self._skip = 0  # samples of this process that were over when the epoch was loaded
        self._drawn = 0  # batches since the epoch was begun here
        self._moved = False

    def begin(self) -> None:
        """Begin an epoch, or go on in the one that was loaded."""
        if self._drawn and not self._moved:
            self._end()
        self._open()

    def next(self) -> Any:
        """The next batch. Raises StopIteration at the end of the epoch."""
        if self._moved:  # loaded while an epoch was under way
            self._open()
        try:
            batch = next(self.loader.data)
        except StopIteration:
            if self.taken:
                self._end()
            self._drawn = 0
            raise
        self.taken += 1
        self._drawn += 1
        return batch

    def sampler(self) -> Any:
        """The loader's sampler, without the samples that are over."""
        sampler = self.loader.data_sampler
        return _Rest(sampler, self._skip) if self._skip else sampler

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many samples of it all processes have taken."""
        if self.taken >= batches(self.loader):
            return {"epoch": self.epoch + 1, "samples": 0}
        samples = self.taken * self.loader.batch_size * self._processes()
        return {"epoch": self.epoch, "samples": samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to the place of ``state``: at once, also in an epoch that is under way."""
        self.epoch = state["epoch"]
        self._skip = state["samples"] // self._processes()
        self.taken = self._skip // self.loader.batch_size
        self._moved = True

    def _processes(self) -> int:
        return getattr(self.loader.data_sampler, "num_replicas", 1)

    def _end(self) -> None:
        self.epoch += 1
        self.taken = self._skip = 0

    def _open(self) -> None:
        self._moved, self._drawn = False, 0
        if hasattr(self.loader.data_sampler, "set_epoch"):
            self.loader.data_sampler.set_epoch(self.epoch)
        self.loader._create_dataloader()


class _Rest:
    """A sampler without its first ``skip`` samples."""

    def __init__(self, sampler: Any, skip: int) -> None:
        self.sampler, self.skip = sampler, skip

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.sampler), self.skip, None)

    def __len__(self) -> int:
        return max(0, len(self.sampler) - self.skip)
