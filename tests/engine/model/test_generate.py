"""Generation and perplexity, against the plain forward pass."""

from __future__ import annotations

import math

import pytest
import torch
from deepspeed.moe.lm import MoELM, MoELMConfig, evaluate, generate

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def lm(one_process: None) -> MoELM:
    config = MoELMConfig(
        hidden_size=16,
        num_layers=2,
        num_experts=4,
        num_heads=2,
        vocab_size=11,
        sequence_length=8,
        eval_capacity_factor=4.0,
        init_std=0.5,
        dropout=0.3,
    )
    return MoELM(config, seed=2)


PROMPT = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_greedy_takes_the_likeliest_and_keeps_to_the_sequence_length(lm: MoELM) -> None:
    out = generate(lm, PROMPT, 9)
    assert out.shape == (2, 12) and torch.equal(out[:, :3], PROMPT)
    assert lm.training, "the mode comes back"
    lm.eval()
    with torch.no_grad():
        for length in range(3, 12):
            seen = out[:, max(0, length - 8) : length]
            assert torch.equal(lm(seen)[:, -1].argmax(-1), out[:, length])
    assert torch.equal(generate(lm, PROMPT, 9, temperature=3.0, top_k=1), out)
    assert torch.equal(generate(lm, PROMPT, 9, temperature=1e-6), out)
    assert torch.equal(generate(lm, PROMPT, 0), PROMPT)


@pytest.mark.parametrize("top_k", [None, 4])
def test_draws_follow_the_softmax(lm: MoELM, top_k: int | None) -> None:
    """4000 draws, chi-square below 29.59 (10 degrees of freedom) or 16.27 (3), once in 1000."""
    lm.eval()
    prompt = torch.tensor([[1, 2, 3]]).repeat(4000, 1)
    generator = torch.Generator().manual_seed(5)
    out = generate(lm, prompt, 1, temperature=2.0, top_k=top_k, generator=generator)
    with torch.no_grad():
        logits = lm(PROMPT[:1])[0, -1] / 2.0
    if top_k is not None:
        logits[logits < logits.topk(top_k).values.min()] = -math.inf
    expected = 4000 * logits.softmax(-1)
    counts = torch.bincount(out[:, -1], minlength=11)
    possible = expected > 0
    assert int(counts[~possible].sum()) == 0
    chi_square = ((counts - expected) ** 2 / expected)[possible].sum()
    assert float(chi_square) < (29.59 if top_k is None else 16.27)


@pytest.mark.parametrize("options", [{"temperature": 1e-320}, {"temperature": 1, "top_p": 1e-50}])
def test_options_that_float32_has_no_number_for(lm: MoELM, options: dict) -> None:
    """They leave one token, the likeliest, as every small value does."""
    assert torch.equal(generate(lm, PROMPT, 3, **options), generate(lm, PROMPT, 3))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(
    lm: MoELM, temperature: float, weight: float
) -> None:
    with torch.no_grad():
        lm.embedding.weight.fill_(weight)
    with pytest.raises(FloatingPointError, match="infinite or not a number"):
        generate(lm, PROMPT, 1, temperature=temperature)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": torch.zeros(2, 0, dtype=torch.int64)}, r"prompt has shape \(2, 0\)"),
        ({"new_tokens": -1}, "new_tokens is -1"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 12}, "top_k is 12; expected 1 to vocab_size = 11"),
    ],
)
def test_refuses_arguments_out_of_range(lm: MoELM, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(lm, **{"prompt": PROMPT, "new_tokens": 1, **arguments})


def test_perplexity_is_the_mean_over_tokens_not_over_windows(lm: MoELM) -> None:
    """Windows of unequal shape, against log-softmax in float64, to 1e-5."""
    windows = [torch.randint(11, shape) for shape in [(3, 9), (1, 4), (0, 5), (2, 1)]]
    found = evaluate(lm, windows)
    assert lm.training
    lm.eval()
    losses = []
    with torch.no_grad():
        for window in windows[:2]:
            logs = lm(window[:, :-1]).double().log_softmax(-1)
            losses.append(-logs.gather(-1, window[:, 1:, None]).flatten())
    expected = float(torch.cat(losses).mean())
    assert found.tokens == 3 * 8 + 3
    assert found.cross_entropy == pytest.approx(expected, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-5)


def test_perplexity_of_nothing_is_refused(lm: MoELM) -> None:
    with pytest.raises(ValueError, match="0 tokens to predict"):
        evaluate(lm, [torch.zeros(3, 1, dtype=torch.int64)])
