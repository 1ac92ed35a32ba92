"""Which tokens each process trains on, at any step, as a pure function.

The token array is cut into windows of S+1 tokens that overlap by one (window i starts at token
i·S), so every token but the first is a target once an epoch. An epoch is one permutation of the
windows, drawn from (seed, epoch); a step takes the next B = global batch of them, and the W mod B
windows left at the end of an epoch wait for another permutation, so that no batch holds a window
twice.

Sequence j of the global batch (0 ≤ j < B) goes to micro-batch a, process r, place k with
j = (a·R + r)·m + k for R processes and micro-batches of m: read in the order (a, r, k), the
global batch is the same for every R, m and number of micro-batches.
"""

from __future__ import annotations

from typing import Any, Iterator

import numpy as np

from dsmoe.benchmark.data.tokenizer import check_vocabulary
from dsmoe.common.errors import DataError

GPT2_VOCABULARY = 50257


class WindowSampler:
    """Global batches of ``global_batch`` windows of ``sequence`` + 1 tokens from ``tokens`` [N].

    ``vocab_size``: ids of every batch are checked against it when given. ``shuffle=False`` takes
    the windows in order. Raises :class:`DataError` when the tokens make fewer windows than one
    global batch needs.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        sequence: int,
        global_batch: int,
        seed: int = 0,
        vocab_size: int | None = None,
        shuffle: bool = True,
    ) -> None:
        self.tokens = tokens
        self.sequence = sequence
        self.global_batch = global_batch
        self.seed = seed
        self.vocab_size = vocab_size
        self.shuffle = shuffle
        self.windows = max(0, (len(tokens) - 1) // sequence)
        self.steps_per_epoch = self.windows // global_batch
        if not self.steps_per_epoch:
            raise DataError(
                f"the text has {len(tokens)} tokens, but one global batch of {global_batch} "
                f"sequences of {sequence} needs {global_batch * sequence + 1}; add text or "
                "make the batch smaller"
            )
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def epoch_order(self, epoch: int) -> np.ndarray:
        """The windows [W] of ``epoch`` in the order they are used."""
        if self._order[0] != epoch:
            if self.shuffle:
                # NumPy keeps the raw stream of a bit generator stable over releases, not that of
                # Generator.permutation (NEP 19); a resumed run must see the same order.
                bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
                order = np.argsort(bits.random_raw(self.windows), kind="stable")
            else:
                order = np.arange(self.windows)
            self._order = (epoch, order)
        return self._order[1]

    def global_windows(self, step: int) -> np.ndarray:
        """The windows [B] of the global batch of ``step`` (from 0), in global order."""
        epoch, at = divmod(step, self.steps_per_epoch)
        return self.epoch_order(epoch)[at * self.global_batch : (at + 1) * self.global_batch]

    def micro_batch(
        self, step: int, accumulation: int, rank: int, processes: int, size: int
    ) -> np.ndarray:
        """Tokens [size, S+1], int64, of micro-batch ``accumulation`` on data-parallel ``rank``."""
        micro_batches, rest = divmod(self.global_batch, processes * size)
        if rest or not 0 <= accumulation < micro_batches or not 0 <= rank < processes:
            raise DataError(
                f"micro-batch {accumulation} of {size} sequences on process {rank} of "
                f"{processes} is not part of a global batch of {self.global_batch}"
            )
        first = (accumulation * processes + rank) * size
        return self.read(self.global_windows(step)[first : first + size])

    def read(self, windows: np.ndarray) -> np.ndarray:
        """Tokens [n, S+1], int64, of the windows [n]."""
        width = self.sequence
        batch = np.empty((len(windows), width + 1), dtype=np.int64)
        for row, window in zip(batch, windows):
            row[:] = self.tokens[window * width : window * width + width + 1]
        if self.vocab_size is not None and batch.size:
            check_vocabulary(int(batch.max()), self.vocab_size, "the text")
        return batch


def evaluation_batches(
    tokens: np.ndarray, sequence: int, size: int, limit: int, vocab_size: int | None = None
) -> Iterator[np.ndarray]:
    """Up to ``limit`` batches [size, S+1] of ``tokens`` in order; fewer when the text is short.

    Every process sees the same batches, so a mean over them needs no exchange.
    """
    windows = max(0, (len(tokens) - 1) // sequence)
    count = min(limit, windows // size)
    if not count:
        return
    sampler = WindowSampler(tokens, sequence, size, vocab_size=vocab_size, shuffle=False)
    for step in range(count):
        yield sampler.read(sampler.global_windows(step))


def artifact_ids(tokens: np.ndarray, largest_id: int, vocab_size: int) -> np.ndarray:
    """Ids 0 and 1, as the artifact's script makes them of GPT-2's 50,257.

    It divides every id by the model's vocabulary size and drops the fraction. Ids up to
    ``largest_id`` are spread over GPT-2's first, so that a small vocabulary has both.
    """
    spread = tokens * GPT2_VOCABULARY // (largest_id + 1)
    ids: np.ndarray = np.minimum(spread // vocab_size, 1).astype(np.int64)
    return ids


def as_torch(batch: np.ndarray | Any, device: str = "cpu") -> tuple[Any, Any]:
    """(inputs, targets), int64 tensors [..., S] on ``device``, of tokens [..., S+1]: an array, or a
    tensor in pinned memory, whose copy the host does not wait for."""
    import torch

    whole = torch.as_tensor(batch).to(device, non_blocking=True)
    return whole[..., :-1].contiguous(), whole[..., 1:].contiguous()
