"""``--pipeline auto``: the fastest by prediction of the pipelines that fit the memory."""

from __future__ import annotations

import dataclasses
from typing import Sequence

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.pipelines import Fastest
from dsmoe.benchmark.plan.estimate import CUDA_CONTEXT_BYTES
from dsmoe.benchmark.predict.memory import pipeline_peak_bytes
from dsmoe.benchmark.predict.pipelines import predict_case, stage_case
from dsmoe.benchmark.predict.rates.choose_cluster import cluster_for
from dsmoe.benchmark.predict.search import USABLE
from dsmoe.common.errors import UsageError


def fastest_for(name: str | None, device: str, gpu: str, memory: int | None) -> Fastest:
    """Picks a case for the cluster ``name`` (None: this machine's ``device`` and ``gpu``) with
    ``memory`` bytes a device (None: the cluster's).

    The choice goes into the case's ``source``. Raises UsageError where no rates are known, or
    where nothing fits.
    """

    def fastest(cases: Sequence[Case], devices: int) -> Case:
        if cases[0].parallel.processes == 1:
            return cases[0]
        cluster = cluster_for(name, device, gpu)
        if cluster is None:
            raise UsageError(
                "--pipeline auto: this machine's rates are not known, so that no time can be "
                "predicted; run dsmoe calibrate first, or give a number of stages"
            )
        here = cluster.with_hosts_of(devices)
        there = memory or cluster.memory_bytes
        fitting = [case for case in cases if needed(case, device) <= USABLE * there]
        if not fitting:
            raise UsageError(
                f"--pipeline auto: none of {len(cases)} settings fits into {there / 2**30:.1f} GiB "
                "a device; expected more GPUs, --remat, or a number of stages"
            )
        # of equal times the one with fewer stages and larger micro-batches, which comes first
        best = min(fitting, key=lambda case: predict_case(case, here).seconds)
        stages = best.parallel.pipeline_parallel_size
        chosen = f"pipeline {stages} by --pipeline auto, for the rates of {cluster.name}"
        return dataclasses.replace(best, source=f"{best.source}; {chosen}")

    return fastest


def needed(case: Case, device: str) -> int:
    """Bytes at the peak of the largest stage, by formula."""
    stages, schedule = case.parallel.pipeline_parallel_size, case.parallel.pipeline_schedule
    stage = stage_case(case, stages, case.micro_batches)
    context = CUDA_CONTEXT_BYTES if device == "cuda" else 0
    return pipeline_peak_bytes(stage, stages, schedule) + context
