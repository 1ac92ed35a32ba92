"""The seconds of work on one device, and of messages, at the rates of a cluster."""

from __future__ import annotations

from typing import Iterable

from dsmoe.benchmark.predict.amounts.traffic import Sent
from dsmoe.benchmark.predict.amounts.work import Sizes, Work
from dsmoe.benchmark.predict.cpu import EXCHANGE, CpuRows
from dsmoe.benchmark.predict.rates.cluster import Cluster

#: Seconds a step of a running count over the tokens takes: torch's cumsum over the first dimension
#: of [8192, 8] took 1.27 ms, and 1.43 in another run, on an H200 (docs/lab/performance.md).
SCAN_STEP = 1.3e-3 / 8192


class Prices:
    """Rates of ``cluster`` for ``precision`` (fp32, fp16, bf16, fp8) with ``processes`` on a host;
    those of a CPU for layers of about ``sizes``. ``fused``: for layers that are compiled."""

    def __init__(
        self, cluster: Cluster, precision: str, processes: int, sizes: Sizes, fused: bool
    ) -> None:
        self.cluster = cluster
        name = "product_quack" if fused and cluster.quack else "product_16bit"
        self.product = cluster.rate("product_fp32" if precision == "fp32" else name) * 1e12
        self.attention = cluster.rate("attention") * 1e12
        self.memory = cluster.rate("memory") * 1e9
        self.rows = CpuRows(cluster, processes, sizes) if cluster.device == "cpu" else None

    def device(self, work: Work, compiled: bool) -> float:
        """Seconds that the device is busy with ``work``."""
        if self.rows is not None:
            known = self.rows.seconds(work)
            if known is not None:
                return known
        rate = self.attention if work.part == "attention" else self.product
        if work.fp8:
            rate = self.cluster.rate("product_fp8") * 1e12
        share = self.cluster.rate("pass_share" if compiled else "eager_share")
        return (
            work.flop / rate * work.slower
            + work.bytes / (self.memory * share)
            + work.rows * SCAN_STEP
        )

    def host(self, works: Iterable[Work], forward: bool, graph: bool) -> float:
        """Seconds that the host takes to start ``works``, or a CUDA graph between its kernels."""
        name = "launch" if forward else "launch_backward"
        name = "launch_graph" if graph else name
        slower = self.rows.slower if self.rows is not None else 1.0
        return sum(work.launches for work in works) * self.cluster.rate(name) * 1e-6 * slower

    def message(self, sent: Sent, collective: tuple[str, int] = EXCHANGE) -> float:
        """Seconds of collectives: inside a host and between hosts, whichever is slower, and their
        starts. On a CPU what the ``collective`` of dsmoe calibrate took."""
        if not sent.calls:
            return 0.0
        if self.rows is not None and not sent.between:
            known = self.rows.message(sent, collective)
            if known is not None:
                return known
        inside = sent.inside / (self.cluster.rate("inside") * 1e9)
        line = self.cluster.rate("between") * self.cluster.rate("between_share") * 1e9 / 8
        between = (sent.serial if self.cluster.duplex else sent.between) / line
        name = "between_latency" if sent.between else "inside_latency"
        return max(inside, between) + sent.calls * self.cluster.rate(name) * 1e-6
