"""Continue token sequences with the model: greedy, or by sampling; with a cache or without."""

from __future__ import annotations

import contextlib
from typing import Iterator

import torch
from torch import Tensor, nn

from .cached import KeyValueCache, every_choice_kept, next_logits
from .modes import evaluating


def generate(
    model: nn.Module,
    prompt: Tensor,
    new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    top_p: float | None = None,
    cache: bool = False,
) -> Tensor:
    """``prompt`` followed by ``new_tokens`` generated tokens.

    Args:
        model: a :class:`~deepspeed.moe.lm.model.MoELM`, or an engine around one.
        prompt: [B, S], S at least 1.
        temperature: 0 takes the likeliest token; above, tokens are drawn from the softmax of
            logits / temperature.
        top_k: draw from this number of likeliest tokens; None: from all.
        generator: for the draws, on the prompt's device.
        top_p: draw from the likeliest tokens that together have this probability; None: from all.
        cache: keep keys and values of earlier tokens, and let no expert drop a token.

    Returns:
        [B, S + new_tokens].

    Raises:
        ValueError: for an argument out of its range.
        FloatingPointError: where the logits are infinite or not a number.

    The model sees the last ``sequence_length`` tokens; the result keeps all. Without ``cache`` the
    whole context is computed again for each token, and the sequences of a batch share the experts'
    capacity (``eval_capacity_factor``), so that a sequence in a full batch can differ from the same
    sequence alone. With expert parallelism all processes must make the same call.
    """
    tokens = prompt
    options = (temperature, top_k, generator, top_p, cache)
    for chosen_B in stream(model, prompt, new_tokens, *options):
        tokens = torch.cat([tokens, chosen_B[:, None].to(tokens.dtype)], dim=1)
    return tokens


def stream(
    model: nn.Module,
    prompt: Tensor,
    new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    top_p: float | None = None,
    cache: bool = True,
) -> Iterator[Tensor]:
    """The tokens [B] of :func:`generate`, one by one as they are made.

    With ``cache`` a new token costs one position until ``sequence_length`` tokens are there; after
    that positions move, and the whole context is computed again for each token.
    """
    lm = getattr(model, "module", model)
    _check(lm.config, prompt, new_tokens, temperature, top_k, top_p)
    longest = lm.config.sequence_length
    tokens, store, fresh = prompt, KeyValueCache(lm, prompt.shape[0]) if cache else None, prompt
    for _ in range(new_tokens):
        # The modes are the caller's again between two tokens.
        with evaluating(model), every_choice_kept(lm) if cache else contextlib.nullcontext():
            if store is not None and tokens.shape[1] <= longest:
                logits_BV = next_logits(lm, fresh, store)
            else:
                logits_BV = model(tokens[:, -longest:])[:, -1]
            chosen_B = _pick(logits_BV, temperature, top_k, generator, top_p)
        fresh = chosen_B[:, None].to(tokens.dtype)
        tokens = torch.cat([tokens, fresh], dim=1)
        yield chosen_B


def _check(
    config: object,
    prompt: Tensor,
    new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    vocab_size = config.vocab_size  # type: ignore[attr-defined]
    if prompt.dim() != 2 or prompt.shape[1] < 1:
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}; expected [B, S], S at least 1")
    if new_tokens < 0:
        raise ValueError(f"new_tokens is {new_tokens}; expected 0 or more")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; expected 0 or more")
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k is {top_k}; expected 1 to vocab_size = {vocab_size}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected above 0, at most 1")


def _pick(
    logits_BV: Tensor,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
    top_p: float | None = None,
) -> Tensor:
    """One token for each sequence; [B]."""
    largest_B1, likeliest_B1 = logits_BV.max(-1, keepdim=True)
    # the maximum is NaN where any logit is
    if not largest_B1.isfinite().all():
        raise FloatingPointError(
            "the model's logits are infinite or not a number; expected finite weights, of a "
            "training that did not diverge"
        )
    if temperature == 0:
        return likeliest_B1[:, 0]
    exact = torch.promote_types(logits_BV.dtype, torch.float32)
    # the largest logit is subtracted first, so that a small temperature cannot overflow; below
    # the least normal number the temperature, or its inverse, would be 0 or infinite
    scaled_BV = logits_BV.to(exact) - largest_B1.to(exact)
    scaled_BV = scaled_BV / max(temperature, torch.finfo(exact).tiny)
    if top_k is None and top_p is None:
        return torch.multinomial(scaled_BV.softmax(-1), 1, generator=generator)[:, 0]
    likeliest = scaled_BV.topk(top_k or scaled_BV.shape[-1], dim=-1)
    shares = likeliest.values.softmax(-1)
    if top_p is not None:
        # a token stays while those before it have less than top_p; the first always does
        left_out = shares.cumsum(-1) - shares >= top_p
        left_out[:, 0] = False  # a top_p below the least number of the type would be 0
        shares = shares.masked_fill(left_out, 0.0)
    drawn_B1 = torch.multinomial(shares, 1, generator=generator)
    return likeliest.indices.gather(-1, drawn_B1)[:, 0]
