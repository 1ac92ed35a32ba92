"""Which members of a group are on one host, and the groups of a sum that goes by hosts.

A host is what ``NCCL_HOSTID`` names, as NCCL takes it, else the host's name. Every process tells
every other; no file is read, so it holds for each launcher.
"""

from __future__ import annotations

import itertools
import os
import socket
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from deepspeed.utils.torch_compat import get_global_rank
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """A group on ``hosts`` hosts with ``near`` members on each, next to one another in the group.

    This process is on host number ``host``, there in place ``place``: its rank in the group is
    host * near + place. ``inside`` has the members of its host (None where they are one),
    ``between`` those of its place on all hosts.
    """

    hosts: int
    near: int
    host: int
    place: int
    inside: Any
    between: Any

    def column(self, pieces: list[Any], place: int) -> list[Any]:
        """Of ``pieces`` by rank in the group those of ``place`` on each host."""
        return pieces[place :: self.near]

    def gather(self, whole: Tensor) -> None:
        """Fill ``whole``, equal pieces by rank in the group, from each process's own piece.

        Between hosts every piece goes once to each other host: a host sends (H - 1) / H of all.
        """
        pieces = list(whole.split(whole.numel() // (self.hosts * self.near)))
        own = pieces[self.host * self.near + self.place]
        dist.all_gather(self.column(pieces, self.place), own, group=self.between)
        if self.inside is None:
            return
        works = []
        for host in range(self.hosts):
            row = pieces[host * self.near :][: self.near]
            works.append(dist.all_gather(row, row[self.place], group=self.inside, async_op=True))
        for work in works:
            work.wait()


def host_name() -> str:
    """The name of this process's host: equal on two processes that share one."""
    return os.environ.get("NCCL_HOSTID") or socket.gethostname()


def rows_of(members: tuple[int, ...], hosts: list[str]) -> list[tuple[int, ...]] | None:
    """The ``members`` of a group by host; ``hosts`` has the host of each process of the run.

    None where they are on one host, or on unequal numbers of members, or where a host's members
    are not next to one another: such a group is reduced as if all were on one host.
    """
    by_host = itertools.groupby(members, key=lambda rank: hosts[rank])
    named = [(name, tuple(ranks)) for name, ranks in by_host]
    rows = [ranks for _, ranks in named]
    apart = len({name for name, _ in named}) < len(rows)
    if len(rows) == 1 or apart or len({len(row) for row in rows}) > 1:
        return None
    return rows


def levels_of(groups: list[Any]) -> list[Levels | None]:
    """For each group of this process how it lies on hosts; None as in :func:`rows_of`.

    Every process of the run calls it at the same time, each with groups of its own.
    """
    world, own = dist.get_world_size(), dist.get_rank()
    members = [_members(group) for group in groups]
    every: list[Any] = [None] * world
    dist.all_gather_object(every, (host_name(), members))
    hosts = [name for name, _ in every]
    made: dict[tuple[int, ...], Any] = {}
    # the same order on all processes, each of which must take part in making every group
    for whole in dict.fromkeys(itertools.chain.from_iterable(theirs for _, theirs in every)):
        rows = rows_of(whole, hosts)
        if rows is None or len(rows[0]) == 1:
            continue
        for part in [*rows, *zip(*rows)]:
            if part not in made:
                made[part] = dist.new_group(list(part))
    return [_levels(g, rows_of(m, hosts), own, made) for g, m in zip(groups, members)]


def _levels(
    group: Any,
    rows: list[tuple[int, ...]] | None,
    own: int,
    made: dict[tuple[int, ...], Any],
) -> Levels | None:
    if rows is None:
        return None
    host = next(number for number, row in enumerate(rows) if own in row)
    near, place = len(rows[0]), rows[host].index(own)
    if near == 1:
        return Levels(len(rows), 1, host, 0, None, group)
    column = tuple(row[place] for row in rows)
    return Levels(len(rows), near, host, place, made[rows[host]], made[column])


def _members(group: Any) -> tuple[int, ...]:
    return tuple(get_global_rank(group, n) for n in range(dist.get_world_size(group=group)))
