"""Text that a model writes, token by token."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable

from dsmoe.benchmark.data.tokenizer import check_vocabulary
from dsmoe.common.errors import ResultsError, UsageError
from dsmoe.model.opened import Opened


@dataclass(frozen=True)
class Choice:
    """How tokens are drawn; see generate of the model."""

    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    cache: bool


def write(
    opened: Opened, prompt: str, tokens: int, how: Choice, out: Callable[[str], None]
) -> tuple[int, float]:
    """Hand ``out`` the text after ``prompt`` as it is made, up to ``tokens`` tokens or the end of
    a document; how many tokens were made, and the seconds.

    Raises UsageError; DataError for a tokenizer of another model; ResultsError for weights that
    are not finite.
    """
    import torch
    from deepspeed.moe.lm import stream

    start = [int(i) for ids in opened.encoder.encode([prompt.encode()]) for i in ids]
    if not start:
        raise UsageError("the text to go on from is empty; expected at least one character")
    check_vocabulary(max(start), opened.model.config.vocab_size, opened.tokenizer or "bytes")
    generator = torch.Generator(opened.device).manual_seed(how.seed)
    ids = torch.tensor([start], device=opened.device)
    options = (how.temperature, how.top_k, generator, how.top_p, how.cache)
    made: list[int] = []
    shown, begin = "", time.perf_counter()
    try:
        for token in stream(opened.model, ids, tokens, *options):
            made.append(int(token))
            if made[-1] == opened.encoder.end_of_document:
                break
            text = opened.encoder.decode(made).decode("utf-8", "replace")
            # half a character is shown when it is whole
            if not text.endswith("\ufffd"):
                out(text[len(shown) :])
                shown = text
    except ValueError as error:
        raise UsageError(str(error)) from error
    except FloatingPointError as error:
        raise ResultsError(f"{opened.words}: {error}") from error
    return len(made), time.perf_counter() - begin
