"""Sharded over real processes equals torch_optimizer on whole parameters, in float64.

Four gloo processes run all cases of sharded_cases.py, on subgroups of one to four.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.adafactor import Oracle, largest_error, load_package, read_data
from support.ranks import run_ranks
from support.sharded_cases import (
    CASES,
    MAX_WORLD,
    Case,
    Group,
    group_tag,
    start_values,
    step_gradients,
    unflatten,
)

adafactor = load_package()
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what the processes wrote."""
    folder = tmp_path_factory.mktemp("sharded")
    run_ranks(MAX_WORLD, "sharded_runs", str(folder))
    return folder


def trained(case: Case, name: str, index: int, group: Group, expert_rank: int, folder: Path):
    """The parameters of one group (and expert rank) as the processes left them."""
    ep = case.ep if group.expert else 1
    ranks = range(expert_rank, case.world, ep)
    files = [read_data(folder / f"{name}.{rank}.pt") for rank in ranks]
    return unflatten(torch.cat([file[index][0] for file in files]), group.shapes)


def reference(case: Case, index: int, group: Group, expert_rank: int):
    """The same group, trained whole by the oracle from step 0."""
    dims = [max(0, len(s) - 2) if b is None else b for s, b in zip(group.shapes, group.batch_dims)]
    options = {**case.options, **(group.options or {})}
    oracle = Oracle(start_values(group, index, expert_rank), dims, **options)
    for step in range(case.stop):
        grads = step_gradients(group, index, expert_rank, step)
        if step in case.no_grad:
            grads = [torch.zeros_like(grad) for grad in grads]
        oracle.step(grads)
    return oracle.values()


@pytest.mark.parametrize("name", CASES)
def test_equals_the_whole(name, results):
    case = CASES[name]
    for index, group in enumerate(case.groups):
        for expert_rank in range(case.ep if group.expert else 1):
            found = trained(case, name, index, group, expert_rank, results)
            expected = reference(case, index, group, expert_rank)
            assert largest_error(found, expected) <= TOLERANCES[case.dtype], (index, expert_rank)


def test_all_holders_of_a_cut_unit_keep_the_same_statistics(results):
    compared = 0
    for name, case in CASES.items():
        files = [read_data(results / f"{name}.{r}.pt") for r in range(case.world)]
        for index, group in enumerate(case.groups):
            ep = case.ep if group.expert else 1
            for cut in group_tag(case, group, 0).cuts:
                for expert_rank in range(ep):
                    states = [file[index][1] for file in files[expert_rank::ep]]
                    held = [_unit_statistics(state, cut) for state in states]
                    held = [statistics for statistics in held if statistics is not None]
                    assert len(held) >= 2
                    assert all(torch.equal(held[0], other) for other in held[1:])
                    compared += len(held)
    assert compared > 50


def _unit_statistics(state, cut):
    entry = state["params"].get(cut.param_id)
    place = cut.unit - entry["first_unit"] if entry else -1
    if not 0 <= place < (entry["col"].numel() // cut.cols if entry else 0):
        return None
    col = entry["col"].view(-1, cut.cols)[place]
    return torch.cat([entry["row"].view(-1, cut.rows)[place], col]) if cut.rows > 1 else col


def test_the_cases_hold_the_awkward_cuts():
    """Without these the comparison above would prove little."""
    seen = set()
    for case in CASES.values():
        for group in case.groups:
            tags = [group_tag(case, group, rank) for rank in range(case.world)]
            ranks_of = {}
            for tag in {tag.rank: tag for tag in tags}.values():
                if not tag.slices:
                    seen.add("only padding")
                    if tag.cuts:
                        seen.add("only padding, others exchange")
                parts = [(p, part) for p in tag.slices for part in adafactor.unit_parts(p)]
                if tag.cuts and parts and all(part.whole for _, part in parts):
                    seen.add("nothing cut here, others exchange")
                for piece, part in parts:
                    if part.whole:
                        continue
                    ranks_of.setdefault((piece.param_id, part.unit), []).append(tag.rank)
                    form = piece.geometry
                    if form.rows > 1 and part.start % form.cols:
                        seen.add("inside a row")
                    if form.rows > 1 and part.start and part.start % form.cols == 0:
                        seen.add("between rows")
                    if part.length == 1:
                        seen.add("one element")
                    if form.rows == 1:
                        seen.add("inside a vector")
                    if form.units > 1:
                        seen.add("inside an expert")
                for piece in tag.slices:
                    inside = piece.offset_in_param % piece.geometry.unit_numel == 0
                    if piece.offset_in_param and inside:
                        seen.add("between experts")
            if any(len(ranks) >= 3 for ranks in ranks_of.values()):
                seen.add("over three partitions")
    assert seen == {
        "only padding",
        "only padding, others exchange",
        "nothing cut here, others exchange",
        "inside a row",
        "between rows",
        "one element",
        "inside a vector",
        "inside an expert",
        "between experts",
        "over three partitions",
    }
