"""Pipelines: the layers cut into stages, each on its share of the processes, with the whole batch.

Every stage is priced with the layers that it has in a run; the first one has the embedding, the
last one the output layer and the loss. The slowest stage and the schedule make the time of the
micro-batches (turns.py); what crosses from stage to stage is the hidden state and its gradient,
beside the computation. At the end each stage reduces its gradients, and all wait for all.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.predict.amounts.parameters import parts
from dsmoe.benchmark.predict.amounts.traffic import Sent, exchanges
from dsmoe.benchmark.predict.amounts.work import PARTS, sizes_of
from dsmoe.benchmark.predict.process_time import Process, Spent, Step
from dsmoe.benchmark.predict.rates.cluster import Cluster
from dsmoe.benchmark.predict.time import Prediction, predict
from dsmoe.benchmark.predict.turns import turns
from dsmoe.common.errors import UsageError


def predict_case(case: Case, cluster: Cluster) -> Prediction:
    """The time of an iteration of ``case`` on ``cluster``, with the pipeline that it has."""
    stages = case.parallel.pipeline_parallel_size
    if stages == 1:
        return predict(case, cluster)
    stage = stage_case(case, stages, case.micro_batches)
    return predict_pipeline(stage, cluster, stages, case.parallel.pipeline_schedule)


def stage_case(case: Case, stages: int, micro_batches: int) -> Case:
    """``case`` as each of ``stages`` stages has it: the parallelism of one stage, with
    ``micro_batches`` an iteration. The model is the whole one; its cut is parameters.parts.

    Raises UsageError where the processes cannot be cut so, or the layers.
    """
    parallel, layers = case.parallel, case.model.num_layers
    if parallel.processes % stages:
        raise UsageError(
            f"{stages} stages: found {parallel.processes} processes; expected a multiple of stages"
        )
    if stages > layers:
        raise UsageError(f"{stages} stages: found {layers} layers; expected one a stage at least")
    return replace(
        case,
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
    """The time of an iteration with ``stages`` stages of the processes of ``stage`` (stage_case)
    each."""
    if stages == 1:
        return predict(stage, cluster)
    return _Pipeline(stage, cluster, stages, schedule).prediction()


class _Pipeline:
    """``each``: a micro-batch's seconds, ``step``: what follows the last one, of every stage."""

    def __init__(self, stage: Case, cluster: Cluster, stages: int, schedule: str) -> None:
        self.case, self.cluster, self.schedule = stage, cluster, schedule
        self.count = stage.micro_batches
        self.on_one_host = stage.parallel.processes * stages <= cluster.gpus_per_host
        beside = min(cluster.gpus_per_host, stage.parallel.processes * stages)
        self.process = process = Process(stage, cluster, beside)
        self.parts = parts(stage.model, stage.remat, stages)
        # stages in the middle are often alike
        each = {part: process.micro_batch(part) for part in dict.fromkeys(self.parts)}
        step = {part: process.step(part, spent) for part, spent in each.items()}
        self.each: list[Spent] = [each[part] for part in self.parts]
        self.step: list[Step] = [step[part] for part in self.parts]

    def prediction(self) -> Prediction:
        sent = self._crossing()
        crossing = self.process.prices.message(sent)
        message = crossing / (2 * self.count)
        slowest = max(self.each, key=lambda one: one.seconds)
        exposed = {name: self.count * seconds for name, seconds in slowest.exposed.items()}
        hidden = dict.fromkeys(PARTS, 0.0)

        alone = self._turns(0.0)
        shown = self._turns(message) - alone
        exposed["bubble"] = alone - self.count * slowest.seconds
        exposed["exchange"] += shown
        hidden["exchange"] = max(0.0, crossing - shown)

        exposed["reduction"], hidden["reduction"] = self._reduction(message)
        for name in ("gather", "optimizer", "launch"):
            exposed[name] += max(getattr(step, name) for step in self.step)
        return Prediction(
            seconds=sum(exposed.values()),
            exposed=exposed,
            hidden=hidden,
            sent={
                "exchange": self.count * max(one.sent.between for one in self.each),
                **{
                    kind: max(step.sent[kind].between for step in self.step)
                    for kind in ("reduction", "gather")
                },
                "pipeline": sent.between,
            },
            cluster=self.cluster.label(self.case.compiled),
        )

    def _turns(self, message: float) -> float:
        """Seconds of all micro-batches, where a message takes ``message``."""
        forward = [self._forward(one) for one in self.each]
        backward = [one.seconds - first for one, first in zip(self.each, forward)]
        # a stage in the middle sends hidden states and gradients over one link
        both = len(self.each) > 2 or not self.cluster.duplex
        return turns(
            forward, backward, self.count, self.schedule, message, message * (2 if both else 1)
        )

    def _forward(self, one: Spent) -> float:
        """Seconds of a forward pass, with two of the tokens' exchanges of a layer."""
        return one.forward + one.exposed["exchange"] * 2 / exchanges(self.case)

    def _reduction(self, message: float) -> tuple[float, float]:
        """Seconds of the reductions, exposed and hidden: a stage begins when it has done its last
        backward pass, which the stages before it have still to do. Then the two ends add up the
        gradients of the tied embedding."""
        tied = self.process.prices.message(self._tied())
        back = [one.seconds - self._forward(one) + message for one in self.each]
        left = [0.0, *accumulate(back[:-1])]
        late = [
            max(0.0, step.reduction - step.hidden - drain) for step, drain in zip(self.step, left)
        ]
        shown = max(max(late[0], late[-1]) + tied, *late)
        longest = max(step.reduction for step in self.step)
        return shown, max(0.0, longest + tied - shown)

    def _tied(self) -> Sent:
        """What a host of the first or last stage sends: every process its share of the gradient, in
        fp32, to the other copy."""
        model, width = self.case.model, self.case.parallel.processes
        share = 4.0 * model.vocab_size * model.hidden_size / width
        if self.on_one_host:
            return Sent(inside=share, calls=1.0)
        between = share * min(self.cluster.gpus_per_host, width)
        return Sent(between=between, serial=between, calls=1.0)

    def _crossing(self) -> Sent:
        """The hidden states of an iteration; a host in the middle sends one way and their gradients
        the other. A stage on several hosts, or several stages on one, is counted by its hosts."""
        each = sizes_of(self.case).hidden * self.count
        calls = 2.0 * self.count
        if self.on_one_host:
            return Sent(inside=2 * each, calls=calls)
        width = self.case.parallel.processes
        between = each * min(self.cluster.gpus_per_host, width)
        return Sent(between=2 * between, serial=2 * between, calls=calls)
