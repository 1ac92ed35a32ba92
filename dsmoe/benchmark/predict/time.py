"""The seconds of an iteration: the work of every layer at the rates of a cluster, by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.flops import tflops
from dsmoe.benchmark.predict.amounts.parameters import whole
from dsmoe.benchmark.predict.amounts.work import PARTS
from dsmoe.benchmark.predict.process_time import Process
from dsmoe.benchmark.predict.rates.cluster import Cluster


@dataclass(frozen=True)
class Prediction:
    """Seconds of an iteration. ``exposed``: by part, adds up to ``seconds``; ``hidden``: by part,
    beside other parts. ``sent``: bytes of a host to other hosts, by kind."""

    seconds: float
    exposed: dict[str, float]
    hidden: dict[str, float]
    sent: dict[str, float]
    cluster: str

    def to_dict(self, case: Case) -> dict[str, Any]:
        """What --json and a record keep."""
        return {
            "cluster": self.cluster,
            "seconds": self.seconds,
            "tokens_per_second": case.tokens_per_step / self.seconds,
            "tflops": tflops(case, self.seconds),
            "parts": {
                name: {"exposed": self.exposed[name], "hidden": self.hidden[name]} for name in PARTS
            },
            "sent_between_hosts": self.sent,
        }


def predict(case: Case, cluster: Cluster) -> Prediction:
    """The time of an iteration of ``case`` without a pipeline (pipelines.py: predict_case)."""
    process = Process(case, cluster, min(cluster.gpus_per_host, case.parallel.processes))
    part, count = whole(case.model), case.micro_batches
    each = process.micro_batch(part)
    step = process.step(part, each)
    exposed = {name: count * seconds for name, seconds in each.exposed.items()}
    exposed["reduction"] += step.reduction - step.hidden
    exposed["gather"] += step.gather
    exposed["optimizer"] += step.optimizer
    exposed["launch"] += step.launch
    return Prediction(
        seconds=sum(exposed.values()),
        exposed=exposed,
        hidden={**dict.fromkeys(PARTS, 0.0), "reduction": step.hidden},
        sent={
            "exchange": count * each.sent.between,
            **{name: sent.between for name, sent in step.sent.items()},
        },
        cluster=cluster.label(case.compiled),
    )
