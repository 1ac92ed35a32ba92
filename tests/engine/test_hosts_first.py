"""Gradients that are summed inside each host first, then between hosts, equal one process's.

Here hosts are names alone; tests/system/cluster/test_bench_hosts.py has links between them.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.zero.host_levels import rows_of
from support.one_process import References, compare
from support.ranks import run_ranks

#: Reduced once a step, in several buckets.
STEP = {"reduce": "step", "bucket_size": 1500}
INT8 = {**STEP, "dtype": "int8"}
#: Four processes, two on each host.
HOSTS = {"hosts": 2, "flat": STEP}


@pytest.fixture(scope="module")
def references() -> References:
    return References()


@pytest.mark.parametrize(
    ("hosts", "rows"),
    [
        ("aabb", [(0, 1), (2, 3)]),
        ("abcd", [(0,), (1,), (2,), (3,)]),
        ("aaaa", None),  # one host
        ("aaab", None),  # unequal numbers
        ("abab", None),  # not next to one another
    ],
)
def test_members_by_host(hosts: str, rows: list[tuple[int, ...]] | None) -> None:
    assert rows_of((0, 1, 2, 3), list(hosts)) == rows


def test_a_group_of_some_processes_has_rows_of_its_own() -> None:
    """Every second process of two hosts of four: the copies of an expert."""
    assert rows_of((1, 3, 5, 7), list("aaaabbbb")) == [(1, 3), (5, 7)]


def test_which_processes_exchange() -> None:
    """Two hosts of two: all sums go by hosts; a group of one process a host has one level."""
    found = run_ranks(4, "levels", {**HOSTS, "expert_parallel": 2})
    for rank, (dense, experts) in enumerate(found):
        host, place = divmod(rank, 2)
        inside, between = [2 * host, 2 * host + 1], [place, place + 2]
        assert dense == {"inside": inside, "between": between, "host": host, "place": place}
        assert experts == {"inside": None, "between": between, "host": host, "place": 0}
    assert run_ranks(4, "levels", {**HOSTS, "hosts": 1}) == [[None, None]] * 4


def test_two_hosts_of_two_equal_one_process(references: References) -> None:
    """Experts in every process, in two, in all four; in fp32 and 16 bit."""
    four: list[dict[str, Any]] = [
        {"stage": 2, "expert_parallel": 1, "accumulation": 2},
        {"stage": 1, "expert_parallel": 2, "flip_groups": True},
        {"stage": 2, "expert_parallel": 2, "optimizer": "Adafactor", "precision": "bf16"},
    ]
    compare([{**HOSTS, **scenario} for scenario in four], 4, references)


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_whole_matrix_on_hosts(references: References, precision: str, hosts: int) -> None:
    kinds = itertools.product(
        (1, 2), (1, 2, 4), (1, 3), ("SGD", "AdamW", "Adafactor"), ("same", "fp32")
    )
    scenarios = [
        {
            "stage": stage,
            "expert_parallel": experts,
            "accumulation": accumulation,
            "optimizer": optimizer,
            "precision": precision,
            "hosts": hosts,
            "flat": {**STEP, "dtype": dtype},
        }
        for stage, experts, accumulation, optimizer, dtype in kinds
    ]
    compare(scenarios, 4, references)


def test_int8_between_hosts_trains_near_full_precision() -> None:
    """The losses of 8 steps of SGD, against messages in fp32 (one seed), as on one host."""
    common = {"steps": 8, "expert_parallel": 1, "optimizer": "SGD", "hosts": 2}
    exact, found = (
        run_ranks(4, "train_all", [{**common, "flat": flat}])[0][0]["losses"]
        for flat in (STEP, INT8)
    )
    assert found == pytest.approx(exact, rel=1e-3)
    assert found != exact and found[-1] < found[0]


def test_weights_of_int8_changes_are_equal_on_all_hosts() -> None:
    scenario = {"steps": 6, "expert_parallel": 1, "optimizer": "AdamW", "hosts": 2}
    for found in run_ranks(4, "weights_behind_their_masters", {**scenario, "flat": INT8}):
        assert found["equal"]
        assert all(apart <= most for apart, most in zip(found["apart"], found["allowed"]))


def test_an_overflow_skips_the_step_on_two_hosts() -> None:
    for flat in (STEP, INT8):
        for result in run_ranks(4, "overflow", {"flat": flat, "hosts": 2}):
            assert result == {"skipped": 1, "unchanged": True, "halved": True, "then": True}


def test_two_passes_before_a_step_are_added_on_two_hosts() -> None:
    expected = run_ranks(4, "two_passes_before_a_step", {"flat": True})[0]
    found = run_ranks(4, "two_passes_before_a_step", HOSTS)[0]
    for one, other in zip(found, expected):
        assert float((one - other).abs().max()) < 2e-5


def test_checkpoints_do_not_depend_on_the_hosts(tmp_path: Path) -> None:
    """Saved on two hosts, resumed on one in the base's way, and the other way round."""
    common = {"steps": 4, "expert_parallel": 2, "optimizer": "Adafactor"}
    for number, (before, after) in enumerate(((HOSTS, {}), ({}, HOSTS))):
        folder = str(tmp_path / str(number))
        saved = run_ranks(4, "save_and_resume", {**common, **before}, folder, 2)
        resumed = run_ranks(4, "resume", {**common, **after}, folder, 2)
        for one, other in zip(saved, resumed):
            assert other["losses"] == pytest.approx(one["expected"]["losses"], rel=1e-5)
