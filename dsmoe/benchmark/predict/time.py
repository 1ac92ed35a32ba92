"""The seconds of an iteration: the work of every layer at the rates of a cluster, by part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.flops import tflops
from dsmoe.benchmark.predict import compiled, eager
from dsmoe.benchmark.predict.parameters import held
from dsmoe.benchmark.predict.price import Prices
from dsmoe.benchmark.predict.rates.cluster import Cluster
from dsmoe.benchmark.predict.traffic import (
    Sent,
    bucket_elements,
    exchange,
    exchanges,
    gather,
    reduction,
)
from dsmoe.benchmark.predict.work import BYTES, PARTS, Pass, Work, sizes_of

#: Operations that the optimizer and ZeRO start for each parameter in a step, and in a micro-batch
#: with ZeRO's own hooks (a copy into the bucket, one out of it, an addition, its bookkeeping).
STEP_LAUNCHES, HOOK_LAUNCHES = 10, 6
#: Bytes that an optimizer moves for each element of its partition in a step, clipping included.
OPTIMIZER_BYTES = {"adafactor": 34, "artifact": 120, "adamw": 40, "sgd": 24}


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
    """The time of an iteration of ``case`` without a pipeline (stages.py: predict_case)."""
    return _Iteration(case, cluster).prediction()


class _Iteration:
    def __init__(self, case: Case, cluster: Cluster) -> None:
        self.case, self.cluster = case, cluster
        self.per_host = min(cluster.gpus_per_host, case.parallel.processes)
        self.prices = Prices(cluster, case.precision, self.per_host)
        self.on_gpu = cluster.device == "cuda"
        self.fused = case.compiled and self.on_gpu
        self.graph = case.cuda_graph and self.on_gpu
        self.exposed = dict.fromkeys(PARTS, 0.0)
        self.hidden = dict.fromkeys(PARTS, 0.0)
        self.sizes = sizes_of(case)
        self.forward_seconds = self.backward_seconds = 0.0

    def prediction(self) -> Prediction:
        self._micro_batch()
        sent = {
            "exchange": exchange(self.case, self.sizes, self.per_host, exchanges(self.case)),
            "reduction": reduction(self.case, self.per_host, self.cluster.device),
            "gather": gather(self.case, self.per_host),
        }
        sent["exchange"] = sent["exchange"].times(self.case.micro_batches)
        self.exposed["exchange"] = self.prices.message(sent["exchange"])
        self._reduce(sent["reduction"])
        self.exposed["gather"] = self.prices.message(sent["gather"])
        self._optimizer()
        return Prediction(
            seconds=sum(self.exposed.values()),
            exposed=self.exposed,
            hidden=self.hidden,
            sent={name: one.between for name, one in sent.items()},
            cluster=self.cluster.name,
        )

    def _layers(self) -> list[tuple[Pass, int]]:
        """Each kind of layer, and how many of it."""
        count = self.case.model.num_layers // 2
        s, case = self.sizes, self.case
        if self.fused and case.moe_implementation == "index":
            return [(compiled.dense(s), count), (compiled.mixture(s), count)]
        local = case.model.num_experts // case.parallel.expert_parallel_size
        mixture = eager.mixture(s, case.attention, case.moe_implementation, local)
        return [(eager.dense(s, case.attention), count), (mixture, count)]

    def _micro_batch(self) -> None:
        """All micro-batches of an iteration: device and host time of every layer and direction."""
        for layer, count in self._layers():
            self._segment(layer.forward, count, True)
            if self.case.remat:
                self._segment(layer.again, count, True, recomputed=True)
            self._segment(layer.backward, count, False)
        loss = compiled.loss(self.sizes) if self.fused else eager.loss(self.sizes)
        self._segment(loss, 1, False)
        self._segment((self._sums(),), 1, False)

    def _segment(
        self, works: tuple[Work, ...], count: int, forward: bool, recomputed: bool = False
    ) -> None:
        """Add ``works``; where the host is slower than the device, the rest is the launches'."""
        times = count * self.case.micro_batches
        busy = 0.0
        for work in works:
            seconds = self.prices.device(work, self.fused)
            self.exposed[work.part] += seconds * times
            busy += seconds
        host = self.prices.host(works, forward, self.graph)
        # a CUDA graph's kernels follow one another with a gap; a CPU computes and starts by turns
        idle = host if self.graph or not self.on_gpu else max(0.0, host - busy)
        self.exposed["launch"] += idle * times
        if forward and not recomputed:
            self.forward_seconds += (busy + idle) * times
        else:
            self.backward_seconds += (busy + idle) * times

    def _sums(self) -> Work:
        """The gradients of a micro-batch, added up: fp32 sums in one pass, or ZeRO's own hooks."""
        own = held(self.case)
        width = BYTES[self.case.weight_precision]
        if self.case.flat_gradients:
            return Work("optimizer", bytes=own.whole * (8.0 + width), launches=4)
        # into the bucket, divided, out of it, added: each reads and writes
        moved = own.whole * 9.0 * width if self.case.parallel.zero_stage == 2 else own.whole * 6.0
        return Work("optimizer", bytes=moved, launches=HOOK_LAUNCHES * own.tensors)

    def _reduce(self, sent: Sent) -> None:
        """Reduction, and what of it runs beside the computation."""
        seconds = self.prices.message(sent)
        self.hidden["reduction"] = min(self._beside(seconds), seconds)
        self.exposed["reduction"] = seconds - self.hidden["reduction"]

    def _beside(self, seconds: float) -> float:
        """Seconds of the reduction beside which the device computes."""
        case, count = self.case, self.case.micro_batches
        stage = case.parallel.zero_stage
        if not self.on_gpu or not stage:
            return 0.0
        if not case.flat_gradients:
            # a full bucket waits for the one before: the first one's computation is not beside any
            buckets = max(1.0, held(case).whole / bucket_elements(case))
            times = count if stage == 2 else 1
            return self.backward_seconds * times / count * (1 - 1 / buckets)
        if case.reduce == "step":
            return 0.0 if self.graph else self.backward_seconds / count
        if case.reduce == "micro_batch" or stage == 2:
            # beside the next micro-batch; the last one has none
            whole = self.forward_seconds + self.backward_seconds
            return min(whole, seconds) * (count - 1) / count
        return 0.0

    def _optimizer(self) -> None:
        """Clipping and the optimizer's step on this process's partition."""
        case = self.case
        own = held(case)
        parts = case.parallel.processes if case.parallel.zero_stage else 1
        copies = case.parallel.copies if case.parallel.zero_stage else 1
        elements = own.dense / parts + own.experts / copies
        name = case.optimizer
        if name == "adafactor" and case.adafactor_mode == "artifact":
            name = "artifact"
        step = Work("optimizer", bytes=elements * OPTIMIZER_BYTES[name])
        self.exposed["optimizer"] += self.prices.device(step, True)
        launches = Work("optimizer", launches=STEP_LAUNCHES * own.tensors)
        self.exposed["launch"] += self.prices.host((launches,), True, False)
