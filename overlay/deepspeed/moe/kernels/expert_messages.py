"""The messages of exchanged_experts.py: in one step, or where hosts are spanned in two.

In two steps (deepspeed/moe/expert_hosts.py) rows go inside the host first and then between hosts,
so those of the own host are computed while the others cross; results go back between hosts first.

Shape suffixes: as in exchanged_experts.py; H hosts of N processes each, P = H N.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Iterator

import torch.distributed as dist
from deepspeed.moe.expert_hosts import levels_for
from deepspeed.runtime.zero.host_levels import Levels
from deepspeed.utils.torch_compat import get_global_rank
from torch import Tensor

from .copy_engines import inbox_for
from .policy import kernels


class _Post:
    """Messages among the members of ``group``; ``size``: bytes for an inbox, None: without."""

    def __init__(self, group: Any, size: int | None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.others = [p for p in range(dist.get_world_size(group)) if p != self.rank]
        wanted = size is not None and kernels().libraries().copy_engines
        self.inbox = inbox_for(group.group_name, group, size or 0) if wanted else None

    def swap(
        self,
        sent: list[list[Tensor]],
        received: list[list[Tensor]],
        moved: list[tuple[Tensor, Tensor]],
    ) -> list[Any]:
        """Start sending and receiving the tensors listed for each of ``others``, and copy the first
        to the second of each pair in ``moved``."""
        if self.inbox is not None:
            return [self.inbox.swap(self.others, sent, received, moved)]
        operations = []
        for peer, out, into in zip(self.others, sent, received):
            rank = get_global_rank(self.group, peer)
            operations += [dist.P2POp(dist.isend, t, rank, self.group) for t in out]
            operations += [dist.P2POp(dist.irecv, t, rank, self.group) for t in into]
        works = dist.batch_isend_irecv(operations) if operations else []
        for source, target in moved:
            target.copy_(source)
        return works


def _wait(works: list[Any]) -> None:
    for work in works:
        work.wait()


class OneStep:
    """Every process of the group sends to every other. ``rank`` is this process's place."""

    def __init__(self, group: Any, size: int) -> None:
        self.post = _Post(group, size)
        self.rank = self.post.rank

    def dispatch(self, x_PDRM: Tensor, all_DPRM: Tensor) -> Iterator[list[int]]:
        """Start sending rows to the processes of their experts, and copy this process's own.

        What it returns gives the processes whose rows have arrived, in one or two parts.
        """
        others = self.post.others
        works = self.post.swap(
            [list(x_PDRM[p]) for p in others],
            [list(all_DPRM[:, p]) for p in others],
            list(zip(x_PDRM[self.rank], all_DPRM[:, self.rank])),
        )
        return self._arrivals(works)

    def _arrivals(self, works: list[Any]) -> Iterator[list[int]]:
        _wait(works)
        yield self.post.others

    def combine(self, back_PDRM: Tensor, y_PDRM: Tensor) -> Callable[[], None]:
        """Start sending results back; what it returns waits until this process has its own."""
        others = self.post.others
        works = self.post.swap([[back_PDRM[p]] for p in others], [[y_PDRM[p]] for p in others], [])
        return functools.partial(_wait, works)


class TwoSteps:
    """As :class:`OneStep`, inside the host and between hosts; see the head of the file."""

    def __init__(self, levels: Levels, size: int) -> None:
        self.host, self.place, self.per_host = levels.host, levels.place, levels.near
        self.near = _Post(levels.inside, levels.hosts * size)
        self.far = _Post(levels.between, None)
        self.rank = self.host * self.per_host + self.place
        # This process's own host first.
        self.hosts = [self.host, *self.far.others]

    def dispatch(self, x_PDRM: Tensor, all_DPRM: Tensor) -> Iterator[list[int]]:
        """As :meth:`OneStep.dispatch`: the rows of the own host arrive first."""
        local, processes, *row = all_DPRM.shape
        grid = (processes // self.per_host, self.per_host)
        x_HNDRM = x_PDRM.view(*grid, local, *row)
        all_HDNRM = all_DPRM.view(local, *grid, *row).transpose(0, 1)
        # By host what goes on to this process's place there, from all processes of this host.
        relay = {h: x_PDRM.new_empty(local, grid[1], *row) for h in self.far.others}
        into_DNRM = {**relay, self.host: all_HDNRM[self.host]}

        def out(n: int) -> list[Tensor]:
            return [t for h in self.hosts for t in x_HNDRM[h, n]]

        def into(n: int) -> list[Tensor]:
            return [t for h in self.hosts for t in into_DNRM[h][:, n]]

        works = self.near.swap(
            [out(n) for n in self.near.others],
            [into(n) for n in self.near.others],
            list(zip(out(self.place), into(self.place))),
        )
        return self._arrivals(works, relay, all_HDNRM)

    def _arrivals(
        self, works: list[Any], relay: dict[int, Tensor], all_HDNRM: Tensor
    ) -> Iterator[list[int]]:
        _wait(works)
        others = self.far.others
        works = self.far.swap(
            [list(relay[h]) for h in others], [list(all_HDNRM[h]) for h in others], []
        )
        yield [self.host * self.per_host + n for n in self.near.others]
        _wait(works)
        yield [h * self.per_host + n for h in others for n in range(self.per_host)]

    def combine(self, back_PDRM: Tensor, y_PDRM: Tensor) -> Callable[[], None]:
        """As :meth:`OneStep.combine`: between hosts now, inside the host once it is waited for."""
        grid = (len(self.hosts), self.per_host, *back_PDRM.shape[1:])
        back_HNDRM, y_HNDRM = back_PDRM.view(grid), y_PDRM.view(grid)
        others = self.far.others
        # By host its results for all processes of this host.
        relay = {h: back_PDRM.new_empty(grid[1:]) for h in others}
        works = self.far.swap([[back_HNDRM[h]] for h in others], [[relay[h]] for h in others], [])

        def finish() -> None:
            _wait(works)
            near = self.near.swap(
                [
                    [back_HNDRM[self.host, n], *(relay[h][n] for h in others)]
                    for n in self.near.others
                ],
                [[y_HNDRM[h, n] for h in self.hosts] for n in self.near.others],
                [(relay[h][self.place], y_HNDRM[h, self.place]) for h in others],
            )
            _wait(near)

        return finish


def messages(name: str, size: int) -> OneStep | TwoSteps:
    """Those of the expert parallel group of this name, ``size`` bytes for each of its processes."""
    group = dist.distributed_c10d._resolve_process_group(name)
    levels = levels_for(group)
    return OneStep(group, size) if levels is None else TwoSteps(levels, size)
