"""The seconds of work on one device, and of messages, at the rates of a cluster."""

from __future__ import annotations

import math
from typing import Any, Iterable, Mapping

from dsmoe.benchmark.predict.amounts.traffic import Sent
from dsmoe.benchmark.predict.amounts.work import Work
from dsmoe.benchmark.predict.rates.cluster import Cluster

#: Seconds a step of a running count over the tokens takes: torch's cumsum over the first dimension
#: of [8192, 8] took 1.27 ms, and 1.43 in another run, on an H200 (docs/lab/performance.md).
SCAN_STEP = 1.3e-3 / 8192


class Prices:
    """Rates of ``cluster`` for ``precision`` (fp32, fp16, bf16) with ``processes`` on a host."""

    def __init__(self, cluster: Cluster, precision: str, processes: int) -> None:
        self.cluster = cluster
        self.on_cpu = cluster.device == "cpu"
        self.table = Table(cluster.rows, processes) if self.on_cpu else None
        wide = precision == "fp32"
        self.product = cluster.rate("product_fp32" if wide else "product_16bit") * 1e12
        self.attention = cluster.rate("attention") * 1e12
        self.memory = cluster.rate("memory") * 1e9
        if self.table is not None:
            self.product = self.table.product(self.product)
            self.attention = self.table.attention(self.attention)

    def device(self, work: Work, compiled: bool) -> float:
        """Seconds that the device is busy with ``work``."""
        if self.table is not None and work.kernel:
            known = self.table.elementwise(work.kernel, work.elements, work.launches)
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
        return sum(work.launches for work in works) * self.cluster.rate(name) * 1e-6

    def message(self, sent: Sent) -> float:
        """Seconds of collectives: inside a host and between hosts, whichever is slower, and their
        starts."""
        if not sent.calls:
            return 0.0
        inside = sent.inside / (self.cluster.rate("inside") * 1e9)
        line = self.cluster.rate("between") * self.cluster.rate("between_share") * 1e9 / 8
        between = (sent.serial if self.cluster.duplex else sent.between) / line
        name = "between_latency" if sent.between else "inside_latency"
        return max(inside, between) + sent.calls * self.cluster.rate(name) * 1e-6


class Table:
    """The rows of dsmoe calibrate on a CPU, for ``processes`` beside one another."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], processes: int) -> None:
        good = [row for row in rows if "error" not in row]
        counts = sorted({row["processes"] for row in good if row["kind"] == "product"})
        fit = [n for n in counts if n >= processes] or counts
        wanted = fit[0] if fit else 1
        self.rows = [row for row in good if row.get("processes") == wanted]

    def attention(self, default: float) -> float:
        """FLOP/s of fused attention, both passes, of the smallest head and the largest batch."""
        found = [
            row
            for row in self.rows
            if row["kind"] == "attention" and row["name"] == "forward-backward"
            if row["dropout"] == 0
        ]
        if not found:
            return default
        row = min(found, key=lambda one: (one["size"], -one["batch"]))
        pairs = row["batch"] * row["heads"] * row["length"] ** 2 / 2
        return float(3.5 * 4 * pairs * row["size"] / row["ms"] * 1000)

    def product(self, default: float) -> float:
        """FLOP/s of the products of the smallest measured width."""
        found = [row for row in self.rows if row["kind"] == "product"]
        least = min((min(row["shape"][1:]) for row in found), default=0)
        flop = seconds = 0.0
        for row in found:
            if min(row["shape"][1:]) == least:
                flop += 2 * math.prod(row["shape"])
                seconds += row["ms"] / 1000
        return flop / seconds if seconds else default

    def elementwise(self, kernel: str, elements: float, launches: float) -> float | None:
        """Seconds of ``launches`` operations on ``elements`` in all, by the nearest size."""
        found = [r for r in self.rows if r.get("name") == kernel and r["kind"] == "pass"]
        if not found or not elements:
            return None
        each = elements / max(launches, 1.0)
        nearest = min(found, key=lambda row: abs(math.log(row["elements"] / each)))
        return float(nearest["ms"] / 1000 * elements / nearest["elements"])
