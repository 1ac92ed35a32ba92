"""Continue token sequences with the model: greedy, by temperature, or by top-k sampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .modes import evaluating


def generate(
    model: nn.Module,
    prompt: Tensor,
    new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``prompt`` followed by ``new_tokens`` generated tokens.

    Args:
        model: a :class:`~deepspeed.moe.lm.model.MoELM`, or an engine around one.
        prompt: [B, S], S at least 1.
        temperature: 0 takes the likeliest token; above, tokens are drawn from the softmax of
            logits / temperature.
        top_k: draw from this number of likeliest tokens; None: from all.
        generator: for the draws, on the prompt's device.

    Returns:
        [B, S + new_tokens].

    Raises:
        ValueError: for an argument out of its range.

    The model sees the last ``sequence_length`` tokens; the result keeps all. The whole context is
    computed again for each token (there is no cache). The sequences of a batch share the experts'
    capacity (``eval_capacity_factor``), so that a sequence in a full batch can differ from the same
    sequence alone. With expert parallelism all processes must make the same call.
    """
    config = getattr(model, "module", model).config
    if prompt.dim() != 2 or prompt.shape[1] < 1:
        raise ValueError(f"prompt has shape {tuple(prompt.shape)}; expected [B, S], S at least 1")
    if new_tokens < 0:
        raise ValueError(f"new_tokens is {new_tokens}; expected 0 or more")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}; expected 0 or more")
    if top_k is not None and not 1 <= top_k <= config.vocab_size:
        raise ValueError(f"top_k is {top_k}; expected 1 to vocab_size = {config.vocab_size}")
    tokens = prompt
    with evaluating(model):
        for _ in range(new_tokens):
            logits_BV = model(tokens[:, -config.sequence_length :])[:, -1]
            chosen_B = _pick(logits_BV, temperature, top_k, generator)
            tokens = torch.cat([tokens, chosen_B[:, None].to(tokens.dtype)], dim=1)
    return tokens


def _pick(
    logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """One token for each sequence; [B]."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    exact = torch.promote_types(logits_BV.dtype, torch.float32)
    # subtract the largest logit first, so that a small temperature cannot overflow
    scaled_BV = logits_BV.to(exact)
    scaled_BV = (scaled_BV - scaled_BV.max(-1, keepdim=True).values) / temperature
    if top_k is None:
        return torch.multinomial(scaled_BV.softmax(-1), 1, generator=generator)[:, 0]
    likeliest = scaled_BV.topk(top_k, dim=-1)
    drawn_B1 = torch.multinomial(likeliest.values.softmax(-1), 1, generator=generator)
    return likeliest.indices.gather(-1, drawn_B1)[:, 0]
