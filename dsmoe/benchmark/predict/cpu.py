"""The seconds of work on a CPU, by the rows of dsmoe calibrate."""

from __future__ import annotations

import bisect
import math
from typing import Any, Mapping

from dsmoe.benchmark.predict.amounts import eager
from dsmoe.benchmark.predict.amounts.traffic import Sent
from dsmoe.benchmark.predict.amounts.work import Sizes, Work, total
from dsmoe.benchmark.predict.rates.cluster import Cluster

Row = Mapping[str, Any]
#: A kind of reduction (traffic.reduction_kind) -> the collective that is measured for it, and how
#: many calls are counted for one of it.
REDUCTIONS = {
    "owner": ("reduce", 1),
    "exchange": ("all-to-all", 1),
    "scatter": ("all-reduce", 1),
    "all": ("all-reduce", 2),
}
LAYER_PARTS = ("products", "attention")
EXCHANGE, GATHER = ("all-to-all-in-step", 1), ("all-gather", 1)


class CpuRows:
    """The rows for ``processes`` beside one another, and for layers of about ``sizes``.

    Products and fused attention have the rate that they reach in whole layers
    (calibrate/layers.py). ``slower``: how much longer all else takes there than one operation
    after another takes alone.
    """

    def __init__(self, cluster: Cluster, processes: int, sizes: Sizes) -> None:
        good = [row for row in cluster.rows if "error" not in row]
        counts = sorted({row["processes"] for row in good if row["kind"] == "product"})
        fit = [n for n in counts if n >= processes] or counts
        self.rows = [row for row in good if fit and row.get("processes") == fit[0]]
        self.collectives = [row for row in good if row["kind"] == "collective"]
        self.rates: dict[str, float] = {}
        self.slower = 1.0
        layers = self._layers(sizes)
        if {"whole", *LAYER_PARTS} <= layers.keys():  # not where a measuring process was ended
            self._take(cluster, layers)

    def seconds(self, work: Work) -> float | None:
        """Seconds of ``work``; None where no row tells."""
        if work.part in self.rates and work.flop:
            return work.flop / self.rates[work.part]
        if work.kernel and work.elements:
            return self._pass(work)
        return None

    def message(self, sent: Sent, collective: tuple[str, int]) -> float | None:
        """Seconds of collectives inside a host; None where no row tells.

        Between the sizes that were measured, the time is on the line between their times.
        """
        if not self.collectives or not sent.calls or not sent.inside:
            return None
        group = max(row["group"] for row in self.collectives)
        found = sorted(
            {
                row["bytes"]: row["ms"]
                for row in self.collectives
                if row["name"] == collective[0] and row["group"] == group
            }.items()
        )
        if len(found) < 2:
            return None
        handed = sent.inside / sent.calls * group / (group - 1)
        sizes, times = zip(*found)
        at = min(max(1, bisect.bisect(sizes, handed)), len(sizes) - 1)
        share = max(0.0, (handed - sizes[at - 1]) / (sizes[at] - sizes[at - 1]))
        ms = times[at - 1] + share * (times[at] - times[at - 1])
        return float(sent.calls / collective[1] * ms / 1000)

    def _layers(self, sizes: Sizes) -> dict[str, Row]:
        """The rows of whole layers whose sizes are nearest."""
        found = [row for row in self.rows if row["kind"] == "layers"]
        if not found:
            return {}

        def apart(row: Row) -> float:
            return abs(math.log(row["tokens"] / sizes.T)) + abs(math.log(row["width"] / sizes.H))

        nearest = min(map(apart, found))
        return {row["name"]: row for row in found if apart(row) == nearest}

    def _take(self, cluster: Cluster, layers: Mapping[str, Row]) -> None:
        whole = layers["whole"]
        works = stack_of(whole)
        rest = whole["ms"]
        for part in LAYER_PARTS:
            ms = layers[part]["ms"]
            if ms > 0:
                self.rates[part] = 1000 * total((w for w in works if w.part == part), "flop") / ms
            rest -= ms
        alone = sum(1000 * (self.seconds(w) or 0.0) for w in works if w.part not in self.rates)
        half = total(works, "launches") / 2
        alone += half * (cluster.rate("launch") + cluster.rate("launch_backward")) / 1000
        self.slower = max(rest, 0.0) / alone

    def _pass(self, work: Work) -> float | None:
        """Seconds of the operations ``work``, by the nearest size."""
        found = [r for r in self.rows if r.get("name") == work.kernel and r["kind"] == "pass"]
        if not found:
            return None
        each = work.elements / max(work.launches, 1.0)
        nearest = min(found, key=lambda row: abs(math.log(row["elements"] / each)))
        return float(nearest["ms"] / 1000 * work.elements / nearest["elements"] * self.slower)


def stack_of(row: Row) -> tuple[Work, ...]:
    """The work of the layers that ``row`` measured, forward and backward, with the loss."""
    tokens, width = row["tokens"], row["width"]
    sizes = Sizes(
        T=tokens,
        H=width,
        N=row["heads"],
        S=row["length"],
        F=width * row["factor"],
        V=row["vocabulary"],
        E=row["experts"],
        C=2 * tokens // row["experts"],  # top-2, capacity factor 1
        R=2 * tokens,
        e=4,
        dropout=False,
    )
    pair = (
        eager.dense(sizes, "fused"),
        eager.mixture(sizes, "fused", "index", row["experts"]),
    )
    layers = [work for layer in pair for work in layer.all(False)]
    return (*(work.times(row["count"] / 2) for work in layers), *eager.loss(sizes))
