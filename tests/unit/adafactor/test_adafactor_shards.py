"""Where parameters lie in partitions: checked against an element-by-element listing."""

from __future__ import annotations

import pytest
import torch
import torch_optimizer
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adafactor import gradients, largest_error, load_package, random_tensors

adafactor = load_package()

shape_lists = st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=1, max_size=6)


@st.composite
def layouts(draw):
    """Shapes, batch dimensions, number of partitions, partition size, names."""
    shapes = draw(shape_lists)
    dims = [draw(st.sampled_from([None, *range(max(0, len(s) - 2), len(s) + 1)])) for s in shapes]
    world = draw(st.integers(1, 6))
    total = sum(torch.Size(shape).numel() for shape in shapes)
    size = -(-total // world) + draw(st.integers(0, 5))
    ids = draw(st.permutations(range(10, 10 + len(shapes))))
    return shapes, dims, world, size, ids


def listing(shapes, dims, ids):
    """For every element of the flat order: its parameter, element, unit, and unit's matrix."""
    elements = []
    for shape, batch, name in zip(shapes, dims, ids):
        batch = max(0, len(shape) - 2) if batch is None else batch
        unit_numel = max(1, torch.Size(shape[batch:]).numel())
        for index in range(torch.Size(shape).numel()):
            elements.append((name, index, index // unit_numel, index % unit_numel))
    return elements


@settings(max_examples=150, deadline=None)
@given(layouts())
def test_slices_parts_and_cuts_match_the_listing(layout):
    shapes, dims, world, size, ids = layout
    elements = listing(shapes, dims, ids)
    holders = {}
    tags = [adafactor.PartitionTag(shapes, size, r, world, None, dims, ids) for r in range(world)]
    for rank, tag in enumerate(tags):
        mine = elements[rank * size : (rank + 1) * size]
        assert tag.slices == adafactor.shard_slices(shapes, size, rank, dims, ids)
        found = []
        for piece in tag.slices:
            assert piece.length > 0 and piece.offset_in_partition == len(found)
            covered = []
            for part in adafactor.unit_parts(piece):
                assert part.offset_in_slice == len(covered)
                numel = piece.geometry.unit_numel
                inside = [part.start + i for i in range(part.length)]
                covered += [(part.unit + i // numel, i % numel) for i in inside]
                assert part.whole == (part.start == 0 and part.length == part.count * numel)
            first = piece.offset_in_param
            assert piece.unit_range == (covered[0][0], covered[-1][0] + 1)
            found += [
                (piece.param_id, first + i, unit, place) for i, (unit, place) in enumerate(covered)
            ]
        assert found == mine
        for name, _, unit, _ in mine:
            holders.setdefault((name, unit), set()).add(rank)
    # Every rank lays out the same messages: the units that two or more ranks hold, in order.
    expected = [key for key, ranks in holders.items() if len(ranks) > 1]
    for tag in tags:
        assert [(cut.param_id, cut.unit) for cut in tag.cuts] == expected
        assert tag.cuts == tags[0].cuts
    offset = 0
    for index, cut in enumerate(tags[0].cuts):
        assert (cut.offset, cut.index) == (offset, index)
        offset += (cut.rows if cut.rows > 1 else 0) + cut.cols + 1
    assert tags[0].message_numel == offset


@pytest.mark.parametrize(
    ("shape", "batch_dims", "expected"),
    [
        ((), None, (1, 1, 1)),
        ((7,), None, (1, 1, 7)),
        ((7, 5), None, (1, 7, 5)),
        ((1, 5), None, (1, 1, 5)),
        ((7, 1), None, (1, 1, 7)),
        ((4, 7, 5), None, (4, 7, 5)),
        ((4, 1, 5), None, (4, 1, 5)),
        ((2, 3, 7, 5), None, (6, 7, 5)),
        ((4, 5), 1, (4, 1, 5)),
        ((4, 5), 2, (20, 1, 1)),
        ((4, 7, 5), 2, (28, 1, 5)),
    ],
)
def test_geometry(shape, batch_dims, expected):
    assert tuple(adafactor.geometry(shape, batch_dims)) == expected


@pytest.mark.parametrize(("shape", "batch_dims"), [((2, 3, 4), 0), ((3,), 2), ((2, 2), -1)])
def test_geometry_refuses_batch_dims_that_leave_no_matrix(shape, batch_dims):
    with pytest.raises(ValueError, match="adafactor_batch_dims"):
        adafactor.geometry(shape, batch_dims)


def test_tags_that_cannot_be_are_refused():
    for arguments, message in (
        (([(2, 2)], 2, 2, 2), "rank is 2"),
        (([(2, 3)], 2, 0, 2), "cannot hold"),
        (([(2,), (2,)], 2, 0, 2, None, None, [1, 1]), "different param_ids"),
    ):
        with pytest.raises(ValueError, match=message):
            adafactor.PartitionTag(*arguments)
    partition = torch.nn.Parameter(torch.zeros(4))
    adafactor.tag_partition(partition, [torch.zeros(2, 2)], 0, 1)
    partition.data = torch.zeros(6)
    with pytest.raises(ValueError, match="tag it again"):
        adafactor.Adafactor([partition]).init_state()


def test_tag_partition_reads_the_batch_dims_of_the_parameters():
    bias = torch.zeros(3, 4)
    bias.adafactor_batch_dims = 1
    partition = torch.zeros(20)
    tag = adafactor.tag_partition(partition, [bias, torch.zeros(2, 4)], 0, 1, param_ids=[8, 5])
    assert partition.adafactor_tag is tag
    assert [(s.param_id, s.geometry.units) for s in tag.slices] == [(8, 3), (5, 1)]


def test_artifact_mode_takes_the_partition_for_one_vector():
    """What the paper's runs did: torch_optimizer on the flat partition, padding and all."""
    start = random_tensors([(24,)], 1, 0.3)[0]
    partitions = [torch.nn.Parameter(start.clone()) for _ in range(3)]
    for partition in partitions[1:]:
        partition.adafactor_tag = adafactor.PartitionTag([(4, 5)], 24, 0, 1)
    optimizers = [
        torch_optimizer.Adafactor(partitions[:1], weight_decay=0.1),
        adafactor.Adafactor(partitions[1:2], weight_decay=0.1, mode="artifact"),
        adafactor.Adafactor(partitions[2:], weight_decay=0.1),
    ]
    for step in range(10):
        grad = gradients([(24,)], step)[0]
        for partition, optimizer in zip(partitions, optimizers):
            partition.grad = grad.clone()
            optimizer.step()
    oracle, artifact, sharded = (partition.detach() for partition in partitions)
    assert largest_error([artifact], [oracle]) <= 1e-12
    assert largest_error([sharded], [oracle]) > 1e-3
    assert optimizers[1].state[partitions[1]]["exp_avg_sq"].shape == (24,)
