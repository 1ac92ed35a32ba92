"""The benchmark's cases as data: model, batch, parallelism, precision, rematerialisation.

Suites: ``artifact`` (the cases of the artifact's script), ``paper`` (the seven points of the
paper's figure), ``smoke`` (small, for the CPU), ``tuned`` (this project's own settings).

Sources: alpa-projects/alpa, osdi22_artifact/deepspeed/benchmark_moe.py at commit 8350d913 (the
script as published) and 0f54053e (an earlier state, whose models at 16 and 32 GPUs are those of
the figure), and benchmark/alpa/suite_paper_manual_moe.py at 8350d913 (model sizes).
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any, Callable

from dsmoe.common.errors import UsageError

PRECISIONS = ("fp32", "fp16", "bf16")
MOE_LAYERS = ("index", "einsum", "deepspeed")
SECOND_CHOICES = ("all", "random", "sampling")
OPTIMIZERS = ("adafactor", "adamw", "sgd")
ADAFACTOR_MODES = ("sharded", "artifact")
# The suites whose runs the paper's figure is drawn with.
PAPER_SUITES = ("artifact", "paper")


def _require(good: bool, what: str) -> None:
    if not good:
        raise UsageError(f"case: {what}")


@dataclass(frozen=True)
class ModelCase:
    """Sizes of a decoder-only transformer whose every second layer is a mixture of experts.

    ``hidden`` H, ``layers`` L, ``heads``, ``experts`` E in a mixture layer, ``sequence`` S,
    ``vocab`` V, ``ffn_factor`` f (feed-forward width over H), ``top_k`` experts a token.
    """

    name: str
    hidden: int
    layers: int
    experts: int
    heads: int = 16
    sequence: int = 1024
    vocab: int = 32000
    ffn_factor: int = 8
    top_k: int = 2

    def __post_init__(self) -> None:
        sizes = asdict(self)
        del sizes["name"]
        for key, value in sizes.items():
            _require(value >= 1, f"{self.name}: {key} is {value}, expected at least 1")
        _require(self.hidden % self.heads == 0, f"{self.name}: heads do not divide hidden")
        _require(self.layers % 2 == 0, f"{self.name}: layers is odd, every second is a mixture")
        _require(self.top_k <= self.experts, f"{self.name}: top_k is larger than experts")

    @property
    def parameter_count(self) -> int:
        """Parameters, by closed formula.

        Tied embedding V·H (no output bias), learned positions S·H, final layer norm 2H. A layer
        has two layer norms 4H and attention 4H²+4H (query, key, value, output, with biases). A
        feed-forward block has 2fH² + fH + H (two matrices, two biases). A dense layer has one of
        them, a mixture layer E of them and a gate E·H without bias; half of the layers each.
        """
        h, f, e = self.hidden, self.ffn_factor, self.experts
        ffn = 2 * f * h * h + f * h + h
        shared = 4 * h * h + 4 * h + 4 * h
        half = self.layers // 2
        layers = half * (shared + ffn) + half * (shared + e * ffn + e * h)
        return self.vocab * h + self.sequence * h + layers + 2 * h


# The sizes the artifact names; see parameter_count for how near the names are (docs/results.md).
MODELS = {
    model.name: model
    for model in (
        ModelCase("380M", 768, 8, 8),
        ModelCase("690M", 768, 8, 16),
        ModelCase("1.3B", 768, 16, 16),
        ModelCase("2.4B", 1024, 16, 16),
        ModelCase("4.5B", 1024, 16, 32),
        ModelCase("10B", 1536, 16, 32),
        ModelCase("27B", 2048, 16, 48),
        ModelCase("70B", 2048, 32, 64),
        ModelCase("140B", 2048, 32, 128),
    )
}


@dataclass(frozen=True)
class Parallel:
    """``processes`` data-parallel ranks, one a device; experts shared by ``expert_parallel``."""

    processes: int
    expert_parallel: int = 1
    zero_stage: int = 2

    def __post_init__(self) -> None:
        _require(self.processes >= 1, f"{self.processes} processes, expected at least 1")
        _require(
            self.expert_parallel >= 1 and self.processes % self.expert_parallel == 0,
            f"expert_parallel {self.expert_parallel} does not divide {self.processes} processes",
        )
        _require(
            self.zero_stage in (0, 1, 2),
            f"ZeRO stage {self.zero_stage} cannot train a mixture of experts: stage 3 of this "
            "DeepSpeed cuts every parameter over all processes, the experts of single processes "
            "too; take --zero-stage 2",
        )


@dataclass(frozen=True)
class Case:
    """One run. ``global_batch`` in sequences a step; ``micro_batches`` a step on each process.

    ``capacity_factor``, ``min_capacity``, ``second_choice`` and ``auxiliary`` (the coefficient
    of the balance loss) configure the gate; ``loss_scale`` 0 means dynamic and counts for fp16
    alone; ``adafactor_mode`` counts for adafactor alone (docs/adafactor.md). ``moe_layer``: ours by
    index or in the product form, or the base's own (docs/model.md). ``compiled``: the training pass
    goes through torch.compile; ``flat_gradients``: ZeRO takes the gradients of a micro-batch
    together; ``cuda_graph``: a micro-batch's passes are one CUDA graph (docs/performance.md has
    all three). ``warmup`` and ``iterations`` are steps not measured and measured. ``source`` says
    where the settings come from.
    """

    suite: str
    model: ModelCase
    parallel: Parallel
    global_batch: int
    micro_batches: int
    precision: str = "fp16"
    loss_scale: float = 1.0
    remat: bool = True
    optimizer: str = "adafactor"
    adafactor_mode: str = "sharded"
    learning_rate: float = 1.5e-4
    weight_decay: float = 1e-2
    clip: float = 1.0
    dropout: float = 0.1
    capacity_factor: float = 1.0
    min_capacity: int = 4
    second_choice: str = "sampling"
    moe_layer: str = "index"
    compiled: bool = False
    flat_gradients: bool = False
    cuda_graph: bool = False
    auxiliary: float = 0.0
    warmup: int = 1
    iterations: int = 5
    seed: int = 1234
    source: str = ""

    def __post_init__(self) -> None:
        name, ranks = f"{self.suite} {self.model.name}", self.parallel.processes
        _require(
            self.micro_batches >= 1 and self.global_batch % (ranks * self.micro_batches) == 0,
            f"{name}: {ranks} processes times {self.micro_batches} micro-batches do not divide "
            f"the global batch of {self.global_batch}",
        )
        _require(
            self.model.experts % self.parallel.expert_parallel == 0,
            f"{name}: expert_parallel {self.parallel.expert_parallel} does not divide "
            f"{self.model.experts} experts",
        )
        for value, known in (
            (self.precision, PRECISIONS),
            (self.second_choice, SECOND_CHOICES),
            (self.moe_layer, MOE_LAYERS),
            (self.optimizer, OPTIMIZERS),
            (self.adafactor_mode, ADAFACTOR_MODES),
        ):
            _require(value in known, f"{name}: {value!r}, expected one of {', '.join(known)}")
        _require(
            not self.flat_gradients or self.parallel.zero_stage > 0,
            f"{name}: flat_gradients with ZeRO stage 0, which has no partitions; expected stage 1 "
            "or 2, or --no-flat-gradients",
        )
        _require(
            not self.compiled or self.moe_layer != "deepspeed",
            f"{name}: compiled with the base's own MoE layer, which waits for the device; expected "
            "--moe-layer index, or --no-compiled",
        )
        _require(
            not self.cuda_graph or (self.compiled and self.flat_gradients),
            f"{name}: cuda_graph without compiled and flat_gradients, which it needs; expected "
            "both, or --no-cuda-graph",
        )
        _require(self.seed >= 0, f"{name}: seed {self.seed} is negative")
        _require(self.iterations >= 1 and self.warmup >= 0, f"{name}: no iteration is measured")

    @property
    def micro_batch_size(self) -> int:
        """Sequences in one micro-batch on one process."""
        return self.global_batch // (self.parallel.processes * self.micro_batches)

    @property
    def tokens_per_step(self) -> int:
        return self.global_batch * self.model.sequence

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as result records keep them."""
        return asdict(self)


# The artifact's script dropped the balance loss; that is mended here: see docs/benchmark.md.
ARTIFACT_AUXILIARY = 0.01
# How this project trains on GPUs, whatever the model and the batch.
FAST = {"compiled": True, "flat_gradients": True, "cuda_graph": True}


def _artifact(gpus: int, model: str, micro_batches: int, expert_parallel: int) -> Case:
    return Case(
        suite="artifact",
        model=MODELS[model],
        parallel=Parallel(gpus, expert_parallel),
        global_batch=1024,
        micro_batches=micro_batches,
        auxiliary=ARTIFACT_AUXILIARY,
        **FAST,
        source="artifact script, commit 8350d913",
    )


def _paper(gpus: int, model: str, micro_batches: int, expert_parallel: int, source: str) -> Case:
    return Case(
        suite="paper",
        model=MODELS[model],
        parallel=Parallel(gpus, expert_parallel),
        global_batch=1024,
        micro_batches=micro_batches,
        auxiliary=ARTIFACT_AUXILIARY,
        **FAST,
        source=source,
    )


def _tuned(gpus: int, model: str, size: int, expert_parallel: int, source: str) -> Case:
    """Micro-batches of ``size`` sequences; no dropout, as the peers it is measured beside."""
    return Case(
        suite="tuned",
        model=MODELS[model],
        parallel=Parallel(gpus, expert_parallel),
        global_batch=1024,
        micro_batches=1024 // (gpus * size),
        precision="bf16",
        remat=False,
        dropout=0.0,
        auxiliary=ARTIFACT_AUXILIARY,
        **FAST,
        source=source,
    )


# Micro-batches of 128 take 64 GiB (docs/performance.md), and the evaluation after them 16 more.
_LARGE_MEMORY = 100 * 2**30


def for_memory(case: Case, memory: int | None) -> Case:
    """``case`` for GPUs of so many bytes: suite tuned takes twice its micro-batch where it fits.

    That is for the cases measured so, of one and two GPUs.
    """
    if case.source != _MEASURED or (memory or 0) < _LARGE_MEMORY or case.micro_batches % 2:
        return case
    return dataclasses.replace(case, micro_batches=case.micro_batches // 2)


_MEASURED = "chosen here by measurement (docs/performance.md)"
_NOT_MEASURED = "chosen here after the cases of one and two GPUs; not measured"
_EARLIER = "artifact script, earlier commit 0f54053e"
_NOT_GIVEN = "model from the figure; micro-batches and expert_parallel are not given, chosen here"

# Byte-sized models; every process count trains on the same global batch.
_SMOKE_MODEL = ModelCase("smoke", 64, 4, 4, heads=4, sequence=128, vocab=320)


def _smoke(processes: int, expert_parallel: int) -> Case:
    return Case(
        suite="smoke",
        model=_SMOKE_MODEL,
        parallel=Parallel(processes, expert_parallel),
        global_batch=16,
        micro_batches=4 // processes,
        precision="fp32",
        remat=False,
        learning_rate=5e-2,
        dropout=0.0,
        second_choice="all",
        auxiliary=1e-2,
        flat_gradients=True,
        warmup=1,
        iterations=40,
        source="chosen here, for the CPU",
    )


SUITES: dict[str, tuple[Case, ...]] = {
    "artifact": (
        _artifact(1, "380M", 128, 1),
        _artifact(4, "1.3B", 32, 4),
        _artifact(8, "2.4B", 16, 2),
        _artifact(16, "4.5B", 8, 8),
        _artifact(32, "10B", 8, 8),
    ),
    "paper": (
        _paper(1, "380M", 128, 1, _EARLIER),
        _paper(2, "690M", 32, 2, _NOT_GIVEN),
        _paper(4, "1.3B", 32, 4, _EARLIER),
        _paper(8, "2.4B", 16, 4, _EARLIER),
        _paper(16, "10B", 8, 8, _EARLIER),
        _paper(32, "27B", 8, 8, _EARLIER),
        _paper(64, "70B", 8, 8, _NOT_GIVEN),
    ),
    "smoke": (_smoke(1, 1), _smoke(2, 2), _smoke(4, 4)),
    "tuned": (
        _tuned(1, "380M", 64, 1, _MEASURED),
        _tuned(2, "690M", 64, 2, _MEASURED),
        _tuned(4, "1.3B", 32, 4, _NOT_MEASURED),
        _tuned(8, "2.4B", 16, 2, _NOT_MEASURED),
    ),
}


def find_case(suite: str, gpus: int) -> Case:
    """The case of ``suite`` for ``gpus`` devices (processes, on the CPU).

    Raises :class:`UsageError` that lists the suites, or the numbers the suite has.
    """
    if suite not in SUITES:
        raise UsageError(f"suite {suite!r}: expected one of {', '.join(SUITES)}")
    for case in SUITES[suite]:
        if case.parallel.processes == gpus:
            return case
    known = ", ".join(str(case.parallel.processes) for case in SUITES[suite]) or "no number yet"
    raise UsageError(f"suite {suite} has no case for {gpus} GPUs; it has {known}")


def list_cases(keep: Callable[[Case], bool] = lambda case: True) -> list[Case]:
    """All cases of all suites for which ``keep`` holds, in order."""
    return [case for cases in SUITES.values() for case in cases if keep(case)]
