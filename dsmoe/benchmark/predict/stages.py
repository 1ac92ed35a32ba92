"""Pipelines: the layers cut into stages, a stage on its share of the processes.

A stage is a case of its own: fewer layers on fewer processes, with the same global batch (the
largest stage, where they are not equal). One
forward and one backward pass in turn: of every iteration a stage waits for (stages - 1) of its
micro-batches; what crosses from stage to stage is the hidden state and its gradient.
"""

from __future__ import annotations

from dataclasses import replace

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.predict.price import Prices
from dsmoe.benchmark.predict.rates.cluster import Cluster
from dsmoe.benchmark.predict.time import Prediction, predict
from dsmoe.benchmark.predict.traffic import Sent
from dsmoe.benchmark.predict.work import sizes_of
from dsmoe.common.errors import UsageError

#: What waits in the bubble: a stage's own work on a micro-batch.
_WAITING = ("products", "attention", "elementwise", "loss", "exchange", "launch")


def predict_case(case: Case, cluster: Cluster) -> Prediction:
    """The time of an iteration of ``case`` on ``cluster``, with the pipeline that it has."""
    stages = case.parallel.pipeline_parallel_size
    if stages == 1:
        return predict(case, cluster)
    stage = stage_case(case, stages, case.micro_batches)
    return predict_pipeline(stage, cluster, stages, case.parallel.pipeline_schedule)


def stage_case(case: Case, stages: int, micro_batches: int) -> Case:
    """The largest of ``stages`` stages of ``case``, with ``micro_batches`` an iteration.

    A pair of layers, one of them with experts, is in one stage. Raises UsageError where the
    processes or the batch cannot be cut so.
    """
    model, parallel = case.model, case.parallel
    if parallel.processes % stages:
        raise UsageError(
            f"{stages} stages: found {parallel.processes} processes; expected a multiple of stages"
        )
    return replace(
        case,
        model=replace(model, num_layers=2 * -(-model.num_layers // (2 * stages))),
        parallel=replace(
            parallel,
            processes=parallel.processes // stages,
            pipeline_parallel_size=1,
            pipeline_schedule="1f1b",
        ),
        micro_batches=micro_batches,
    )


def predict_pipeline(
    stage: Case, cluster: Cluster, stages: int, schedule: str = "eager"
) -> Prediction:
    """The time of an iteration with ``stages`` stages, each like ``stage`` (stage_case)."""
    found = predict(stage, cluster)
    if stages == 1:
        return found
    exposed = dict(found.exposed)
    work = sum(exposed[name] for name in _WAITING)
    exposed["bubble"] = (stages - 1) / stage.micro_batches * work
    sent = _crossing(stage, cluster, stages)
    prices = Prices(cluster, stage.precision, cluster.gpus_per_host)
    crossing = prices.message(sent)
    # Beside the next micro-batch's work, except for the first and last messages. In 1f1b P
    # micro-batches wait for 2 (P - 1) messages, as tests/unit/pipeline/test_schedule.py shows.
    first = min(1.0, (stages - 1) / stage.micro_batches)
    shown = crossing * ((stages - 1) / stages if schedule == "1f1b" else first)
    exposed["exchange"] += shown
    hidden = dict(found.hidden)
    hidden["exchange"] += crossing - shown
    return Prediction(
        seconds=sum(exposed.values()),
        exposed=exposed,
        hidden=hidden,
        sent={**found.sent, "pipeline": sent.between},
        cluster=found.cluster,
    )


def _crossing(stage: Case, cluster: Cluster, stages: int) -> Sent:
    """The hidden states of an iteration; a host in the middle sends one way and their gradients
    the other. A stage on several hosts, or several stages on one, is counted by its hosts."""
    sizes = sizes_of(stage)
    each = sizes.hidden * stage.micro_batches
    per_host = cluster.gpus_per_host
    calls = 2.0 * stage.micro_batches
    if stage.parallel.processes * stages <= per_host:
        return Sent(inside=2 * each, calls=calls)
    between = each * min(per_host, stage.parallel.processes)
    return Sent(between=2 * between, serial=2 * between, calls=calls)
