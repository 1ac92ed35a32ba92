"""What a process and a host send in an iteration, by kind, inside a host and between hosts.

Bytes are those of the least that the collective needs: a group that lies on h hosts sends (h-1)/h
of what it reduces or gathers from each host, once for each group that the host takes part in.
"""

from __future__ import annotations

from dataclasses import dataclass

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.placement import exchanged_share
from dsmoe.benchmark.predict.amounts.parameters import Part, held, whole
from dsmoe.benchmark.predict.amounts.work import BYTES, Sizes, sizes_of


@dataclass(frozen=True)
class Sent:
    """One kind of message in an iteration.

    ``inside``: bytes that a process sends to others of its host; ``between``: bytes that a host
    sends to other hosts; ``serial``: bytes that cross a host's link one after the other, where
    they are more than it sends (a reduction to one owner after another uses one direction at a
    time); ``calls``: collectives.
    """

    inside: float = 0.0
    between: float = 0.0
    serial: float = 0.0
    calls: float = 0.0

    def __add__(self, other: Sent) -> Sent:
        return Sent(
            self.inside + other.inside,
            self.between + other.between,
            self.serial + other.serial,
            self.calls + other.calls,
        )

    def times(self, count: float) -> Sent:
        """The same ``count`` times."""
        return Sent(
            self.inside * count, self.between * count, self.serial * count, self.calls * count
        )


@dataclass(frozen=True)
class TrafficGroup:
    """Processes that reduce together: ``members`` of ``hosts``, ``streams`` such groups a host."""

    members: int
    hosts: int
    streams: int

    def gathered(self, size: float, calls: float = 1.0) -> Sent:
        """A ring collective that moves ``size`` bytes once: reduce-scatter or all-gather."""
        if self.members == 1:
            return Sent()
        near = self.members / self.hosts
        inside = size * (near - 1) / near
        between = size * (self.hosts - 1) / self.hosts * self.streams
        return Sent(inside, between, between, calls)

    def owned(self, size: float, calls: float) -> Sent:
        """Reductions to one owner after another: each goes one way at a time."""
        sent = self.gathered(size, calls)
        serial = size * self.streams if self.hosts > 1 else 0.0
        return Sent(sent.inside, sent.between, serial, calls if self.members > 1 else 0.0)


def groups_of(case: Case, per_host: int) -> tuple[TrafficGroup, TrafficGroup]:
    """The groups of the dense parameters and of the experts' copies, for hosts of ``per_host``."""
    parallel = case.parallel
    per_host = min(per_host, parallel.processes)
    hosts = parallel.processes // per_host
    size, copies = parallel.expert_parallel_size, parallel.copies
    dense = TrafficGroup(parallel.processes, hosts, 1)
    if parallel.expert_layout == "across":
        near = min(copies, per_host)
        return dense, TrafficGroup(copies, copies // near, max(1, per_host // near))
    streams = min(size, per_host)
    near = max(1, per_host // size)
    return dense, TrafficGroup(copies, max(1, copies // near), streams)


def exchanges(case: Case) -> int:
    """All-to-alls of a mixture layer in a micro-batch: two in each direction and again."""
    return 6 if case.remat else 4


def handed_over(case: Case) -> int:
    """Bytes that a process hands to the experts' exchange in an iteration, without a pipeline."""
    sizes = sizes_of(case)
    layers = case.model.num_layers // 2 * case.micro_batches
    return sizes.R * sizes.H * sizes.e * exchanges(case) * layers


def exchange(
    case: Case, sizes: Sizes, per_host: int, passes: int, part: Part | None = None
) -> Sent:
    """The tokens' exchange of one micro-batch: ``passes`` all-to-alls a mixture layer of ``part``
    (None: of the whole model)."""
    parallel = case.parallel
    size = parallel.expert_parallel_size
    if size == 1:
        return Sent()
    per_host = min(per_host, parallel.processes)
    far = exchanged_share(parallel, per_host)
    near = (size - 1) / size - far
    count = passes * (part or whole(case.model)).mixtures
    message = float(sizes.R * sizes.H * sizes.e)
    between = message * far * per_host
    return Sent(message * near, between, between, 1.0).times(count)


def reduction(case: Case, per_host: int, device: str, part: Part | None = None) -> Sent:
    """The gradients of an iteration: those of ``part`` (None: of the whole model)."""
    own = held(case, part)
    dense, experts = groups_of(case, per_host)
    times, width, kind = reduction_kind(case, device, part is not None and part.is_stage)
    sent = Sent()
    for group, count in ((dense, own.dense), (experts, own.experts)):
        size = float(count * width)
        buckets = max(1.0, count / bucket_elements(case))
        if kind == "exchange" and group.hosts > 1:  # in both directions at a time
            sent += group.gathered(size, 2 * buckets).times(times)
        elif kind in ("owner", "exchange"):
            sent += group.owned(size, buckets * min(group.members, 8)).times(times)
        elif kind == "all":
            sent += group.gathered(size).times(2 * times)
        else:
            sent += group.gathered(size).times(times)
    return sent


def bucket_elements(case: Case) -> float:
    """Elements of a bucket of reductions to owners."""
    return 5e8 if not case.flat_gradients else 2.5e7


def reduction_kind(case: Case, device: str, staged: bool) -> tuple[int, int, str]:
    """How often an iteration reduces, bytes an element, and how: owner, scatter, all, or by an
    exchange (to the owners, where a group is on one host). A stage of a pipeline (``staged``)
    reduces its sums once, in fp32 where 16 bit are not asked for."""
    width = BYTES[case.weight_precision]
    stage = case.parallel.zero_stage
    if staged and case.reduce is None:
        width = 4
    if stage == 0:
        return 1, width, "all"
    each = case.micro_batches
    if case.reduce == "step" or staged:
        by_hosts = device == "cpu" if case.hierarchical is None else case.hierarchical
        return 1, width, "exchange" if by_hosts else "owner"
    if not case.flat_gradients:
        return (each if stage == 2 else 1), width, "owner"
    scatter = "scatter" if device == "cuda" else "all"
    if case.reduce == "micro_batch" or stage == 2:
        return each, width, scatter
    return 1, 4, scatter


def gather(case: Case, per_host: int, part: Part | None = None) -> Sent:
    """The new weights of an iteration: those of ``part`` (None: of the whole model)."""
    if case.parallel.zero_stage == 0:
        return Sent()
    own, width = held(case, part), BYTES[case.weight_precision]
    dense, experts = groups_of(case, per_host)
    return dense.gathered(float(own.dense * width)) + experts.gathered(float(own.experts * width))
