"""The seconds of one process: a micro-batch of its layers, and the step after the last one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.predict.amounts import compiled, eager
from dsmoe.benchmark.predict.amounts.parameters import Part, held
from dsmoe.benchmark.predict.amounts.traffic import (
    Sent,
    bucket_elements,
    exchange,
    exchanges,
    gather,
    reduction,
    reduction_kind,
)
from dsmoe.benchmark.predict.amounts.work import BYTES, PARTS, ModelPass, Work, sizes_of
from dsmoe.benchmark.predict.cpu import GATHER, REDUCTIONS
from dsmoe.benchmark.predict.price import Prices
from dsmoe.benchmark.predict.rates.cluster import Cluster

#: Share of the experts' slots that is filled in the first iterations of suite tuned, for experts
#: that compute these alone (docs/lab/performance.md); a trained router fills more.
FILLED = 0.82
#: Operations that the optimizer and ZeRO start for each parameter in a step, and in a micro-batch
#: with ZeRO's own hooks (a copy into the bucket, one out of it, an addition, its bookkeeping).
STEP_LAUNCHES, HOOK_LAUNCHES = 10, 6
#: Bytes that an optimizer moves for each element of its partition in a step, clipping included.
OPTIMIZER_BYTES = {"adafactor": 34, "artifact": 120, "adamw": 40, "sgd": 24}


@dataclass
class Spent:
    """Seconds of a micro-batch by part of the iteration, and those of its two passes without the
    exchange of tokens; ``sent`` by that exchange. ``ahead``: of a pass (forward, backward), seconds
    of the device less those of the host that starts its work."""

    exposed: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    forward: float = 0.0
    backward: float = 0.0
    sent: Sent = field(default_factory=Sent)
    ahead: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("forward", "backward"), 0.0)
    )

    @property
    def seconds(self) -> float:
        return sum(self.exposed.values())

    def add(self, other: Spent, count: float = 1.0) -> None:
        """Add ``other`` so many times."""
        for name, seconds in other.exposed.items():
            self.exposed[name] += count * seconds
        self.forward += count * other.forward
        self.backward += count * other.backward
        for name, seconds in other.ahead.items():
            self.ahead[name] += count * seconds

    def wait_for_host(self) -> None:
        """Add what the device waits for the host: in each pass, what all its starts take longer
        than all its work. A queue of work lies between the two, so a long operation makes up for
        short ones after it."""
        for name, ahead in self.ahead.items():
            idle = max(0.0, -ahead)
            self.exposed["launch"] += idle
            setattr(self, name, getattr(self, name) + idle)


@dataclass(frozen=True)
class Step:
    """Seconds after the last micro-batch: ``reduction`` (``hidden`` of them run beside the
    computation), ``gather``, the optimizer and what it waits for the host; ``sent`` by kind."""

    reduction: float
    hidden: float
    gather: float
    optimizer: float
    launch: float
    sent: Mapping[str, Sent]


class Process:
    """A process of ``case``, whose parallelism is that of one stage; each kind of layer is priced
    once. ``beside``: processes of this case on a host."""

    def __init__(self, case: Case, cluster: Cluster, beside: int) -> None:
        self.case, self.cluster = case, cluster
        self.per_host = min(cluster.gpus_per_host, case.parallel.processes)
        self.sizes = sizes_of(case)
        self.on_gpu = cluster.device == "cuda"
        self.fused = case.compiled and self.on_gpu
        self.prices = Prices(cluster, case.precision, beside, self.sizes, self.fused)
        self.graph = case.cuda_graph and self.on_gpu
        dense, mixture = self._layers()
        self.dense, self.mixture = self._priced(dense), self._priced(mixture)
        loss = compiled.loss(self.sizes) if self.fused else eager.loss(self.sizes)
        self.loss = Spent()
        self._segment(self.loss, loss, False)

    def micro_batch(self, part: Part) -> Spent:
        """One micro-batch of ``part``: its layers (the embedding's lookups are too short to count),
        the loss, the sums of its gradients, the exchange of tokens."""
        spent = Spent()
        spent.add(self.dense, part.dense)
        spent.add(self.mixture, part.mixtures)
        spent.add(self.loss, float(part.last))
        self._segment(spent, (self._sums(part),), False)
        spent.wait_for_host()
        passes = exchanges(self.case)
        spent.sent = exchange(self.case, self.sizes, self.per_host, passes, part)
        spent.exposed["exchange"] += self.prices.message(spent.sent)
        return spent

    def step(self, part: Part, each: Spent) -> Step:
        """The end of an iteration of ``part``, each of whose micro-batches takes ``each``."""
        reduced = reduction(self.case, self.per_host, self.cluster.device, part)
        gathered = gather(self.case, self.per_host, part)
        kind = reduction_kind(self.case, self.cluster.device, part.is_stage)[2]
        seconds = self.prices.message(reduced, REDUCTIONS[kind])
        optimizer, launch = self._optimizer(part)
        return Step(
            reduction=seconds,
            hidden=min(self._beside(part, each, seconds), seconds),
            gather=self.prices.message(gathered, GATHER),
            optimizer=optimizer,
            launch=launch,
            sent={"reduction": reduced, "gather": gathered},
        )

    def _layers(self) -> tuple[ModelPass, ModelPass]:
        """A dense layer and a mixture."""
        s, case = self.sizes, self.case
        if self.fused and case.moe_implementation == "index":
            packed = self.cluster.quack and self.cluster.packs and not s.fp8
            packed = packed and case.parallel.expert_parallel_size == 1
            return compiled.dense(s), compiled.mixture(s, FILLED if packed else 1.0)
        local = case.model.num_experts // case.parallel.expert_parallel_size
        mixture = eager.mixture(s, case.attention, case.moe_implementation, local)
        return eager.dense(s, case.attention), mixture

    def _priced(self, layer: ModelPass) -> Spent:
        """Device and host time of a layer, in all directions."""
        spent = Spent()
        self._segment(spent, layer.forward, True)
        if self.case.remat:
            self._segment(spent, layer.again, True, recomputed=True)
        self._segment(spent, layer.backward, False)
        return spent

    def _segment(
        self, spent: Spent, works: tuple[Work, ...], forward: bool, recomputed: bool = False
    ) -> None:
        """Add ``works`` of a pass, and how far the device is ahead of the host."""
        busy = 0.0
        for work in works:
            seconds = self.prices.device(work, self.fused)
            spent.exposed[work.part] += seconds
            busy += seconds
        host = self.prices.host(works, forward, self.graph)
        # a CUDA graph's kernels follow one another with a gap; a CPU computes and starts by turns
        if self.graph or not self.on_gpu:
            spent.exposed["launch"] += host
            busy += host
        else:
            spent.ahead["forward" if forward and not recomputed else "backward"] += busy - host
        if forward and not recomputed:
            spent.forward += busy
        else:
            spent.backward += busy

    def _sums(self, part: Part) -> Work:
        """The gradients of a micro-batch, added up: fp32 sums in one pass, or ZeRO's own hooks."""
        own = held(self.case, part)
        width = BYTES[self.case.weight_precision]
        if self.case.flat_gradients or part.is_stage:
            return Work("optimizer", bytes=own.whole * (8.0 + width), launches=4)
        # into the bucket, divided, out of it, added: each reads and writes
        moved = own.whole * 9.0 * width if self.case.parallel.zero_stage == 2 else own.whole * 6.0
        return Work("optimizer", bytes=moved, launches=HOOK_LAUNCHES * own.tensors)

    def _beside(self, part: Part, each: Spent, seconds: float) -> float:
        """Of the reduction's ``seconds``, those beside which the device computes."""
        case, count = self.case, self.case.micro_batches
        stage = case.parallel.zero_stage
        if not self.on_gpu or not stage:
            return 0.0
        if case.reduce == "step" or part.is_stage:
            return 0.0 if self.graph else each.backward
        if not case.flat_gradients:
            # a full bucket waits for the one before: the first one's computation is not beside any
            buckets = max(1.0, held(case, part).whole / bucket_elements(case))
            times = count if stage == 2 else 1
            return each.backward * times * (1 - 1 / buckets)
        if case.reduce == "micro_batch" or stage == 2:
            # beside the next micro-batch; the last one has none
            whole = (each.forward + each.backward) * count
            return min(whole, seconds) * (count - 1) / count
        return 0.0

    def _optimizer(self, part: Part) -> tuple[float, float]:
        """Clipping and the optimizer's step on this process's partition; what waits for the
        host."""
        case = self.case
        own = held(case, part)
        parts = case.parallel.processes if case.parallel.zero_stage else 1
        copies = case.parallel.copies if case.parallel.zero_stage else 1
        elements = own.dense / parts + own.experts / copies
        name = case.optimizer
        if name == "adafactor" and case.adafactor_mode == "artifact":
            name = "artifact"
        step = Work("optimizer", bytes=elements * OPTIMIZER_BYTES[name])
        launches = Work("optimizer", launches=STEP_LAUNCHES * own.tensors)
        return self.prices.device(step, True), self.prices.host((launches,), True, False)
