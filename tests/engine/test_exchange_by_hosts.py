"""Tokens that go inside each host first, then between hosts, are those of one step, to the bit.

Here hosts are names alone; docs/guide/beyond-one-host.md has what a link between them carried.
"""

from __future__ import annotations

import pytest
import torch
from support.exchange_probes import COMPILES, LOCAL, ROWS, WIDTH, draws
from support.ranks import run_ranks

BLOCK = LOCAL * ROWS * WIDTH * 4  # bytes of one process for one other


def check(hosts: int, per_host: int, compiled: bool = False) -> None:
    """``hosts`` of ``per_host`` processes in one expert parallel group."""
    forms = ["operator", "overlapped", *(["compiled"] if compiled else [])]
    world = hosts * per_host
    every = [draws(rank, world) for rank in range(world)]
    for rank, found in enumerate(run_ranks(world, "in_one_and_two_steps", hosts, compiled)):
        assert found["known"] == [False, True]
        mine = slice(rank * LOCAL, (rank + 1) * LOCAL)
        for i in range(2):  # rows and gradients, of which this process gets those for its experts
            expected = torch.cat([drawn[i][mine] for drawn in every])
            assert torch.equal(found["operator"][0][i], expected)
        for form in forms:
            one, two = found[form]
            assert len(one) == len(two) and all(map(torch.equal, one, two)), form
            check_messages(found, form, rank, hosts, per_host)


def check_messages(found: dict, form: str, rank: int, hosts: int, per_host: int) -> None:
    """To H - 1 processes instead of N (H - 1), N times as large, as many bytes."""
    one, two = (sent[form] for sent in found["messages"])
    host, place = divmod(rank, per_host)
    others = [h for h in range(hosts) if h != host]
    assert set(two) == {h * per_host + place for h in others}
    assert set(one) == {h * per_host + n for h in others for n in range(per_host)}
    for sent, size in ((one, BLOCK), (two, per_host * BLOCK)):
        for parts in sent.values():
            # there and back, forward and backward; the operator is used once each way
            assert sum(parts) == size * (4 if form == "overlapped" else 2)
    assert {len(parts) for parts in two.values()} == {len(parts) for parts in one.values()}


def test_two_hosts_of_two_exchange_in_two_steps_to_the_bit() -> None:
    check(2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "per_host"), [(2, 2), (2, 3), (3, 2)])
def test_hosts_and_processes_in_other_numbers_and_compiled(hosts: int, per_host: int) -> None:
    """Where hosts and processes are not equally many, no index can stand for another one."""
    check(hosts, per_host, COMPILES)


def test_hosts_of_one_process_keep_one_step() -> None:
    for found in run_ranks(4, "in_one_and_two_steps", 4):
        assert found["known"] == [False, False]
