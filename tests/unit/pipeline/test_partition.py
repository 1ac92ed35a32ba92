"""Layers to stages: checked against every possible cut."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe.common.overlay_modules import load

partition = load("deepspeed/moe/pipeline/partition.py")


@dataclass
class Config:
    """The fields of a ``MoELMConfig`` that costs depend on."""

    hidden_size: int = 64
    num_layers: int = 4
    num_experts: int = 4
    vocab_size: int = 320
    sequence_length: int = 128
    ffn_multiplier: int = 8
    moe_every: int = 2
    top_k: int = 2
    remat: bool = False


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_no_other_cut_has_a_cheaper_costliest_stage(costs, data):
    stages = data.draw(st.integers(1, len(costs)))
    ends = [data.draw(st.integers(0, 60)) for _ in range(2)]
    found = partition.cut_costs(costs, stages, *ends)
    whole = list(costs)
    whole[0] += ends[0]
    whole[-1] += ends[1]

    def largest(bounds):
        return max(sum(whole[a:b]) for a, b in zip(bounds, bounds[1:]))

    assert [f.first for f in found] == [0, *(f.last for f in found[:-1])]
    assert found[-1].last == len(costs) and all(f.first < f.last for f in found)
    inner = itertools.combinations(range(1, len(costs)), stages - 1)
    best = min(largest((0, *cut, len(costs))) for cut in inner)
    assert largest([0, *(f.last for f in found)]) == best


def test_the_output_layer_counts() -> None:
    """With a vocabulary as costly as many layers, the last stage has fewer of them."""
    small = [len(s.numbers) for s in partition.cut(Config(num_layers=8), 2)]
    large = [len(s.numbers) for s in partition.cut(Config(num_layers=8, vocab_size=2000), 2)]
    assert small == [4, 4] and large[0] > large[1]


def test_costs_of_a_layer_are_its_multiplications() -> None:
    dense, experts = partition.layer_costs(Config(num_layers=2))
    attention, ffn = 4 * 64 * 64 + 2 * 128 * 64, 2 * 64 * 512
    assert (dense, experts) == (3 * (attention + ffn), 3 * (attention + 2 * ffn + 64 * 4))
    assert partition.layer_costs(Config(num_layers=2, remat=True)) == [
        4 * (attention + ffn),
        4 * (attention + 2 * ffn + 64 * 4),
    ]
    assert partition.end_costs(Config()) == (3 * 64, 3 * 64 * 320)


@pytest.mark.parametrize("stages", [0, 5])
def test_more_stages_than_layers_are_refused(stages: int) -> None:
    with pytest.raises(ValueError, match=f"{stages} pipeline stages for 4 layers; expected 1 to 4"):
        partition.cut(Config(), stages)
