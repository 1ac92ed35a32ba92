"""The paper's seven points as they are predicted: the published settings, remedies, dsmoe's own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.flops import FORMULAS, TERA
from dsmoe.benchmark.cases.published import published
from dsmoe.benchmark.cases.suites import SUITES
from dsmoe.benchmark.predict.pipelines import predict_pipeline, stage_case
from dsmoe.benchmark.predict.rates.cluster import Cluster
from dsmoe.benchmark.predict.time import predict

#: Micro-batches that a pipeline is tried with.
MICRO_BATCHES = (8, 16, 32, 64)


@dataclass(frozen=True)
class Predicted:
    """One point: seconds an iteration of the published settings, of the same with gradients reduced
    once, of the same in a pipeline over the hosts, of dsmoe with gradients reduced once, and of
    dsmoe in a pipeline. The last but one column holds where there is one host too.

    ``flop`` of an iteration by the artifact's formula, at the published settings for all: the same
    work, so that TFLOPS compare seconds.
    """

    gpus: int
    model: str
    flop: int
    published: float
    once: float
    pipeline: float
    dsmoe: float
    dsmoe_pipeline: float

    def tflops(self, seconds: float) -> float:
        """TFLOP a second and GPU, by the artifact's formula at the published settings."""
        return self.flop / seconds / self.gpus / TERA


def paper_points(cluster: Cluster) -> list[Predicted]:
    """The points of suite paper on ``cluster``."""
    points = []
    for case in SUITES["paper"]:
        gpus = case.parallel.processes
        here = cluster.with_hosts_of(min(cluster.gpus_per_host, gpus))
        base = published(case)
        once = dataclasses.replace(base, flat_gradients=True, reduce="step")
        ours = dataclasses.replace(case, reduce="step")
        points.append(
            Predicted(
                gpus,
                case.model.name,
                FORMULAS["artifact"](base),
                predict(base, here).seconds,
                predict(once, here).seconds,
                _pipeline(once, here),
                predict(ours, here).seconds,
                _pipeline(ours, here),
            )
        )
    return points


def _pipeline(case: Case, cluster: Cluster) -> float:
    """The best of MICRO_BATCHES with a stage on each host, experts inside it."""
    hosts = case.parallel.processes // cluster.gpus_per_host
    if hosts == 1:
        return predict(case, cluster).seconds
    width = cluster.gpus_per_host
    return min(
        predict_pipeline(stage_case(case, hosts, count), cluster, hosts).seconds
        for count in MICRO_BATCHES
        if case.global_batch_size % (count * width) == 0 and count >= hosts
    )
