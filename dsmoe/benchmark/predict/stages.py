"""Pipelines: the layers cut into stages, a stage on its share of the processes.

A stage is a case of its own: fewer layers on fewer processes, with the same global batch. One
forward and one backward pass in turn: of every iteration a stage waits for (stages - 1) of its
micro-batches; what crosses from stage to stage is the hidden state and its gradient.
"""

from __future__ import annotations

from dataclasses import replace

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.predict.cluster import Cluster
from dsmoe.benchmark.predict.price import Prices
from dsmoe.benchmark.predict.time import Prediction, predict
from dsmoe.benchmark.predict.traffic import Sent
from dsmoe.benchmark.predict.work import sizes_of

#: What waits in the bubble: a stage's own work on a micro-batch.
_WAITING = ("products", "attention", "elementwise", "loss", "exchange", "launch")


def stage_case(case: Case, stages: int) -> Case:
    """One of ``stages`` equal stages of ``case``. Raises UsageError where it cannot be cut so."""
    if stages == 1:
        return case
    model = replace(case.model, num_layers=case.model.num_layers // stages)
    parallel = replace(case.parallel, processes=case.parallel.processes // stages)
    return replace(case, model=model, parallel=parallel)


def predict_pipeline(case: Case, cluster: Cluster, stages: int) -> Prediction:
    """The time of an iteration of ``case`` with its layers in ``stages`` stages."""
    if stages == 1:
        return predict(case, cluster)
    stage = stage_case(case, stages)
    found = predict(stage, cluster)
    exposed = dict(found.exposed)
    work = sum(exposed[name] for name in _WAITING)
    exposed["bubble"] = (stages - 1) / case.micro_batches * work
    sent = _crossing(stage, cluster, stages)
    prices = Prices(cluster, case.precision, cluster.gpus_per_host)
    crossing = prices.message(sent)
    # beside the next micro-batch's work, except for the first and last messages
    shown = crossing * min(1.0, (stages - 1) / case.micro_batches)
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
