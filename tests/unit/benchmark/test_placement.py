"""Where the processes that share experts are, for hosts of a known size."""

from __future__ import annotations

import pytest
from support.commands import cases_of

from dsmoe.benchmark.cases.case import Parallel
from dsmoe.benchmark.cases.choice import Changes, WantedCases, chosen_cases
from dsmoe.benchmark.cases.placement import (
    auto_size,
    devices_of_a_host,
    exchanged_share,
    group_hosts,
    group_of,
)
from dsmoe.benchmark.cases.suites import SUITES
from dsmoe.common.errors import UsageError


@pytest.mark.parametrize(
    ("processes", "devices", "experts", "inside", "across"),
    [(4, 2, 4, 2, 2), (16, 8, 32, 8, 2), (64, 8, 64, 8, 8), (12, 6, 16, 2, 2), (4, 4, 4, 4, 1)],
)
def test_the_size_for_hosts(
    processes: int, devices: int, experts: int, inside: int, across: int
) -> None:
    assert auto_size(processes, devices, experts) == inside
    assert auto_size(processes, devices, experts, "across") == across
    for layout, size in (("inside", inside), ("across", across)):
        parallel = Parallel(processes, size, expert_layout=layout)
        assert group_hosts(parallel, devices) == (1 if layout == "inside" else size)


def test_copies_that_no_host_can_hold_are_refused() -> None:
    with pytest.raises(UsageError, match="3 experts cannot be divided"):
        auto_size(4, 2, 3, "across")


def test_groups_and_what_they_send_to_other_hosts() -> None:
    across = Parallel(4, 2, expert_layout="across")
    assert [group_of(across, rank) for rank in range(4)] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert exchanged_share(across, 2) == 0.5
    assert [group_of(Parallel(4, 2), rank) for rank in range(4)] == [[0, 1]] * 2 + [[2, 3]] * 2
    assert exchanged_share(Parallel(4, 2), 2) == 0
    assert exchanged_share(Parallel(4, 4), 2) == 0.5 and exchanged_share(Parallel(4, 4), 1) == 0.75


def test_suites_without_a_published_size_take_that_of_the_hosts() -> None:
    def size(suite: str, processes: int, **changes: object) -> int:
        wanted = WantedCases(processes, suite, changes=Changes(**changes))  # type: ignore[arg-type]
        [case] = chosen_cases(wanted, "cuda", devices_of=lambda p: 2)
        return case.parallel.expert_parallel_size

    assert size("smoke", 4) == size("tuned", 4) == 2
    assert size("tuned", 4, expert_parallel_size=4) == 4
    # a stage inside a host has fewer layers than the case that needs no expert parallelism there
    assert size("tuned", 4, pipeline_parallel_size=2) == 1
    assert size("tuned", 4, pipeline_parallel_size=2, expert_parallel_size="auto") == 2
    assert size("tuned", 16, pipeline_parallel_size=8) == 2
    [case] = chosen_cases(WantedCases(4, "tuned"), "cuda", devices_of=lambda p: 4)
    assert case.parallel.expert_parallel_size == 1
    assert size("artifact", 4) == 4 and size("artifact", 4, expert_parallel_size="auto") == 2
    # 16 experts on 8 processes in hosts of 2: copies on one host need 4 to a group
    assert size("tuned", 8, expert_layout="across") == 4
    [case] = cases_of("4", "--suite", "tuned", "--expert-parallel", "auto")
    assert case.parallel.expert_parallel_size == 4


def test_suite_tuned_has_every_point_of_the_figure_and_is_for_hosts_of_eight() -> None:
    assert [case.parallel.processes for case in SUITES["tuned"]] == [1, 2, 4, 8, 16, 32, 64]
    for case in SUITES["tuned"]:
        parallel = case.parallel
        devices = devices_of_a_host(parallel.processes)
        # four GPUs were measured to be faster without the exchange
        size = 1 if parallel.processes == 4 else min(8, parallel.processes)
        assert parallel.expert_parallel_size == size
        assert exchanged_share(parallel, devices) == 0
