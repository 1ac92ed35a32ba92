"""Loss, perplexity, bits a byte and expert load of a model on a text."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from dsmoe.benchmark.data import corpus
from dsmoe.benchmark.data.batches import WindowSampler
from dsmoe.benchmark.data.sources import TEXT_FIELD
from dsmoe.common.errors import DataError
from dsmoe.model.opened import Opened

BATCH = 8


@dataclass(frozen=True)
class Measured:
    """``loss`` in nats a token; ``bits_per_byte`` over the bytes that the predicted tokens stand
    for; ``expert_load`` [layers][experts], shares of first choices; ``windows`` of ``of``."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    windows: int
    of: int
    expert_load: list[list[float]]


def measure(
    opened: Opened, paths: list[str], cache: Path, most: int, field: str = TEXT_FIELD
) -> Measured:
    """Over up to ``most`` windows of the whole text of ``paths``, evenly spaced; without paths of
    the part of the standard library that is held out. Raises DataError."""
    import torch
    from deepspeed.moe.lm import evaluate

    share = 0.0 if paths else 0.05
    cap = None if paths else 8_000_000
    text = corpus.prepare(cache, paths, opened.tokenizer, held_out=share, cap=cap, field=field)
    text.check_vocabulary(opened.model.config.vocab_size)
    tokens = text.train if paths else text.held_out
    assert tokens is not None  # the standard library has more than one document
    length = min(opened.model.config.sequence_length, len(tokens) - 1)
    if length < 1:
        raise DataError(f"{text.source}: found {len(tokens)} tokens; expected at least 2")
    sampler = WindowSampler(tokens, length, 1, shuffle=False)
    count = min(most, sampler.windows)
    chosen = np.linspace(0, sampler.windows - 1, count).astype(np.int64)
    size = 0
    config = opened.model.config
    load = torch.zeros(len(config.moe_layers), config.num_experts, dtype=torch.float64)

    def windows() -> Iterator[Any]:
        nonlocal size, load
        for at in _progress(range(0, count, BATCH)):
            batch = sampler.read(chosen[at : at + BATCH])
            size += sum(len(opened.encoder.decode(row[1:])) for row in batch)
            yield torch.from_numpy(batch).to(opened.device)
            load += opened.model.last_stats.expert_load.cpu().double()

    found = evaluate(opened.model, windows())
    bits = found.cross_entropy * found.tokens / math.log(2) / max(1, size)
    shares = (load / load.sum(-1, keepdim=True).clamp(min=1)).tolist()
    return Measured(
        found.cross_entropy, found.perplexity, bits, found.tokens, count, sampler.windows, shares
    )


def _progress(steps: range) -> Any:
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.stderr)
    return track(steps, "evaluating", console=console, disable=not sys.stderr.isatty())
