"""Generation with a cache of keys and values gives the tokens of generation without one."""

from __future__ import annotations

import pytest
import torch
from deepspeed.moe.lm import MoELM, MoELMConfig, generate, stream
from deepspeed.moe.lm.cached import KeyValueCache, every_choice_kept, next_logits

pytestmark = pytest.mark.usefixtures("one_process")
PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])


def model(**changes: object) -> MoELM:
    sizes = {
        "hidden_size": 16,
        "num_layers": 4,
        "num_experts": 4,
        "num_heads": 2,
        "vocab_size": 11,
        "sequence_length": 16,
        "init_std": 0.5,
    }
    return MoELM(MoELMConfig(**{**sizes, **changes}), seed=3).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize("first", [1, 5])
def test_logits_are_those_of_the_whole_context(experts: int, first: int) -> None:
    """Float64, to 1e-10, at every length, after a first piece of 1 or 5 positions."""
    lm = model(num_experts=experts)
    tokens = torch.randint(11, (3, 16), generator=torch.Generator().manual_seed(0))
    cache = KeyValueCache(lm, 3)
    with torch.no_grad(), every_choice_kept(lm):
        for at in [0, *range(first, 16)]:
            piece = tokens[:, at : at + 1] if at else tokens[:, :first]
            found = next_logits(lm, piece, cache)
            expected = lm(tokens[:, : cache.length])[:, -1]
            assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10), cache.length


def test_tokens_are_equal_also_past_the_sequence_length() -> None:
    lm = model(drop_tokens=False)
    for options in ({}, {"temperature": 1.0, "top_k": 5}, {"temperature": 0.7, "top_p": 0.8}):
        drawn = [
            generate(
                lm,
                PROMPT,
                20,
                generator=torch.Generator().manual_seed(1),
                cache=cache,
                **options,  # type: ignore[arg-type]
            )
            for cache in (True, False)
        ]
        assert torch.equal(*drawn), options
    streamed = torch.stack(list(stream(lm, PROMPT, 20)), dim=1)
    assert torch.equal(streamed, generate(lm, PROMPT, 20)[:, 3:])


def test_a_step_costs_one_position_and_modes_come_back() -> None:
    lm = model()
    seen: list[int] = []
    lm.layers[0].ffn_norm.register_forward_hook(lambda m, x, y: seen.append(x[0].shape[1]))
    lm.train()
    generate(lm, PROMPT, 5, cache=True)
    assert seen == [3, 1, 1, 1, 1]
    assert lm.training
    assert all(m.drop_tokens for m in lm.modules() if hasattr(m, "drop_tokens"))


def test_top_p_leaves_unlikely_tokens_out() -> None:
    lm = model()
    prompt = PROMPT[:1].repeat(500, 1)
    with torch.no_grad():
        shares = lm(PROMPT[:1])[0, -1].softmax(-1)
    order = shares.argsort(descending=True)
    before = shares[order].cumsum(0) - shares[order]
    allowed = set(order[before < 0.6].tolist())
    draws = torch.Generator().manual_seed(1)
    lone = next(stream(lm, prompt, 1, 1.0, None, draws, 0.6))
    assert set(lone.tolist()) == allowed
    assert len(allowed) < 11
    with pytest.raises(ValueError, match="top_p"):
        generate(lm, PROMPT, 1, top_p=1.5)
