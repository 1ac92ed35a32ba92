"""The energy of a run: of all GPUs together, or none where one GPU's is not known."""

from __future__ import annotations

import pytest
from support.ranks import run_ranks

MEASURED = "energy_of_all"


def test_the_energy_is_that_of_all_processes_from_the_first_reading_to_the_last() -> None:
    # also beyond 32 bits: a board of 700 W counts to 2 ** 32 mJ in 71 days
    counters = [[2**32 + 5, 2**32 + 100, 2**32 + 1505], [10, 10, 510]]
    assert run_ranks(2, MEASURED, counters) == [(2.0, "")] * 2


@pytest.mark.parametrize("other", [None, [7, 7]])
def test_nothing_is_said_where_one_board_does_not_count(other: list[int] | None) -> None:
    """Half of the energy would look like a run that needs half of it."""
    found = run_ranks(2, MEASURED, [[0, 1000], other])
    if other is None:
        assert found == [(None, ""), (None, "no energy is measured: Not Supported")]
    else:
        assert found == [(None, ""), (None, "")]


def test_an_older_torch_is_named() -> None:
    for joules, problem in run_ranks(2, MEASURED, [[0, 1000], [0, 1000]], None):
        assert joules is None and "does not tell a GPU's UUID" in problem
