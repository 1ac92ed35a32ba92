"""Saved state loads at any number of processes; state is small."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adafactor import load_package, read_data

adafactor = load_package()

SHAPES = [(3, 4, 5), (7, 3), (6,), (3, 5), (1, 4)]
BATCH_DIMS = [None, None, None, 1, None]
TOTAL = sum(torch.Size(shape).numel() for shape in SHAPES)


def tags_for(world: int, order=None, extra: int = 0):
    order = list(range(len(SHAPES))) if order is None else order
    size = -(-TOTAL // world) + extra
    shapes, dims = [SHAPES[i] for i in order], [BATCH_DIMS[i] for i in order]
    return [adafactor.PartitionTag(shapes, size, r, world, None, dims, order) for r in range(world)]


def partition_for(tag) -> torch.Tensor:
    return torch.zeros(tag.partition_size, dtype=torch.float64)


def one_process_checkpoint() -> dict:
    """The saved state of one process that holds everything, every number in it different."""
    tag = tags_for(1)[0]
    partition = torch.nn.Parameter(partition_for(tag))
    partition.adafactor_tag = tag
    optimizer = adafactor.Adafactor([partition], beta1=0.9)
    optimizer.init_state()
    state = optimizer.state[partition]
    state["step"] = 17
    count = 0
    tensors = [state["exp_avg"]]
    tensors += [v for f in state["factors"].values() for v in f.values() if torch.is_tensor(v)]
    for tensor in tensors:
        tensor.copy_(torch.arange(count, count + tensor.numel()))
        count += tensor.numel()
    return adafactor.state_for_checkpoint(state, tag)


def move(saved, tags):
    """Load on the ranks of ``tags`` and save again, through a weights-only file."""
    found = []
    for tag in tags:
        state = adafactor.load_state_from_checkpoint(saved, tag, partition_for(tag), True)
        file = io.BytesIO()
        torch.save(adafactor.state_for_checkpoint(state, tag), file)
        file.seek(0)
        found.append(read_data(file))
    return found


def assert_same(found, expected) -> None:
    assert found["step"] == expected["step"] and found["params"].keys() == expected["params"].keys()
    for name, entry in expected["params"].items():
        assert found["params"][name].keys() == entry.keys()
        for key, value in entry.items():
            other = found["params"][name][key]
            same = torch.equal(other, value) if torch.is_tensor(value) else other == value
            assert same, (name, key)


orders = st.permutations(range(len(SHAPES)))
hops = st.lists(st.tuples(st.integers(1, 9), orders, st.integers(0, 4)), min_size=1, max_size=3)


@pytest.mark.long
@settings(max_examples=20, deadline=None)
@given(hops, st.randoms(use_true_random=False))
def test_state_survives_any_chain_of_process_counts_and_orders(hops, random):
    expected = one_process_checkpoint()
    saved = [expected]
    for world, order, extra in hops:
        saved = move(saved, tags_for(world, order, extra))
        random.shuffle(saved)
    assert_same(move(saved, tags_for(1))[0], expected)


def test_what_cannot_be_loaded_is_refused():
    whole = one_process_checkpoint()
    halves = move([whole], tags_for(2))
    tag = tags_for(1)[0]

    def load(saved, tag=tag, first_moment=True):
        return adafactor.load_state_from_checkpoint(saved, tag, partition_for(tag), first_moment)

    with pytest.raises(ValueError, match="no saved state holds unit"):
        load(halves[:1], first_moment=False)
    with pytest.raises(ValueError, match="first moment of parameter 0 that belong here"):
        load(halves[:1])
    with pytest.raises(ValueError, match=r"saved states are of steps \[16, 17\]"):
        load([halves[0], {**halves[1], "step": 16}])
    with pytest.raises(ValueError, match="expected one step"):
        load([])
    other = adafactor.PartitionTag([(5, 4, 3)], 60, 0, 1)
    with pytest.raises(ValueError, match="was saved with shape"):
        load([whole], other)
    for entry in whole["params"].values():
        del entry["exp_avg"]
    load([whole], first_moment=False)
    with pytest.raises(ValueError, match="first moment"):
        load([whole])
    with pytest.raises(ValueError, match="init_state"):
        adafactor.state_for_checkpoint({}, tag)


def test_a_saved_copy_does_not_follow_the_training():
    tag = tags_for(1)[0]
    partition = torch.nn.Parameter(partition_for(tag))
    partition.adafactor_tag = tag
    optimizer = adafactor.Adafactor([partition])
    partition.grad = torch.ones_like(partition)
    optimizer.step()
    saved = adafactor.state_for_checkpoint(optimizer.state[partition], tag)
    before = saved["params"][0]["col"].clone()
    partition.grad = 5 * torch.ones_like(partition)
    optimizer.step()
    assert torch.equal(saved["params"][0]["col"], before)


def gpt_moe_shapes(hidden=768, layers=8, experts=8, vocab=32000, positions=1024):
    """Dense and expert parameters of the artifact's 380M model: FFN 8 x hidden, every second
    layer of experts."""
    dense, moe = [(vocab, hidden), (positions, hidden), (hidden,), (hidden,)], []
    for layer in range(layers):
        dense += [(3 * hidden, hidden), (3 * hidden,), (hidden, hidden), (hidden,)]
        dense += [(hidden,)] * 4
        if layer % 2:
            dense.append((experts, hidden))
            moe += [(experts, hidden, 8 * hidden), (experts, 1, 8 * hidden)]
            moe += [(experts, 8 * hidden, hidden), (experts, 1, hidden)]
        else:
            dense += [(8 * hidden, hidden), (8 * hidden,), (hidden, 8 * hidden), (hidden,)]
    return dense, moe


@pytest.mark.parametrize("world", [1, 4, 16])
def test_second_moment_of_the_380m_model_is_under_one_percent_of_adams(world):
    """On the meta device: the state's real tensors, none of their memory."""
    total = 0
    for rank in range(world):
        held = 0
        adams = 0
        for shapes in gpt_moe_shapes():
            size = -(-sum(torch.Size(shape).numel() for shape in shapes) // world)
            partition = torch.empty(size, device="meta", requires_grad=True)
            partition.adafactor_tag = adafactor.PartitionTag(shapes, size, rank, world)
            optimizer = adafactor.Adafactor([partition])
            optimizer.init_state()
            assert set(optimizer.state[partition]) == {"step", "factors"}
            for factors in optimizer.state[partition]["factors"].values():
                held += sum(v.numel() for v in factors.values() if torch.is_tensor(v))
            adams += 2 * size
        assert held < 0.01 * adams
        total += adams // 2
    assert 380e6 < total < 390e6
