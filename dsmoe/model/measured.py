"""Loss, perplexity, bits a byte and expert load of a model on a text."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import numpy as np

from dsmoe.benchmark.data import corpus
from dsmoe.benchmark.data.batches import WindowSampler, artifact_ids
from dsmoe.benchmark.data.sources import TEXT_FIELD
from dsmoe.common.errors import DataError, ResultsError
from dsmoe.model.opened import Opened

BATCH = 8
WINDOWS = 512


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
    text: str


def measure(
    opened: Opened, paths: list[str], cache: Path, most: int | None, field: str = TEXT_FIELD
) -> Measured:
    """Over up to ``most`` windows (None: WINDOWS) of the whole text of ``paths``, evenly spaced.

    Without paths of what the model's training held out, or an exported model of what a training on
    the standard library holds out; and with ``most`` None those that the training itself
    evaluates, in its batches. Raises DataError, and ResultsError where the loss is not finite.
    """
    import torch
    from deepspeed.moe.lm import evaluate

    from dsmoe.benchmark.train.measures import EVALUATION_BATCHES

    before = None if paths else opened.training
    size = BATCH
    if paths:
        text = corpus.prepare(cache, paths, opened.tokenizer, held_out=0.0, field=field)
        tokens, words = text.train, text.source
    else:
        own = before.text if before and before.text else {"cap": 8_000_000}
        text = corpus.prepare(cache, tokenizer=opened.tokenizer, **own)
        if text.held_out is None:
            raise DataError(f"{text.source}: nothing of it is held out; name a text with --data")
        tokens, words = text.held_out, f"held out of {text.source}"
        if before and before.content != text.info.content:
            words += ", which is another text than in training"
    text.check_vocabulary(opened.model.config.vocab_size)
    length = min(opened.model.config.sequence_length, len(tokens) - 1)
    if length < 1:
        raise DataError(f"{text.source}: found {len(tokens)} tokens; expected at least 2")
    sampler = WindowSampler(tokens, length, 1, shuffle=False)
    spaced = np.linspace(0, sampler.windows - 1, min(most or WINDOWS, sampler.windows))
    chosen = spaced.astype(np.int64)
    if before and most is None:  # those of measures.held_out_loss, which takes whole batches
        each = before.case.micro_batch_size
        whole = min(EVALUATION_BATCHES, sampler.windows // each) * each
        if whole:
            chosen, size, words = np.arange(whole), each, f"{words}, as in training"
    count = len(chosen)
    decoded = 0
    config = opened.model.config
    load = torch.zeros(len(config.moe_layers), config.num_experts, dtype=torch.float64)

    def windows() -> Iterator[Any]:
        nonlocal decoded, load
        for at in _progress(range(0, count, size)):
            batch = sampler.read(chosen[at : at + size])
            if before and before.case.artifact_ids:
                batch = artifact_ids(batch, text.info.largest_id, config.vocab_size)
            decoded += sum(len(opened.encoder.decode(row[1:])) for row in batch)
            yield torch.from_numpy(batch).to(opened.device)
            load += opened.model.last_stats.expert_load.cpu().double()

    found = evaluate(opened.model, windows())
    if not math.isfinite(found.cross_entropy):
        raise ResultsError(
            f"{opened.words}: found a loss of {found.cross_entropy}; expected a finite one: the "
            "weights are damaged, or their training diverged"
        )
    bits = found.cross_entropy * found.tokens / math.log(2) / max(1, decoded)
    shares = (load / load.sum(-1, keepdim=True).clamp(min=1)).tolist()
    figures = (found.cross_entropy, found.perplexity, bits, found.tokens)
    return Measured(*figures, count, sampler.windows, shares, words)


def _progress(steps: range) -> Any:
    from rich.console import Console
    from rich.progress import track

    console = Console(file=sys.stderr)
    return track(steps, "evaluating", console=console, disable=not sys.stderr.isatty())
