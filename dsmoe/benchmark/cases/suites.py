"""The benchmark's cases as data: model, batch, parallelism, precision, rematerialisation.

Suites: ``artifact`` (the cases of the artifact's script), ``published`` (the same, trained as it
was), ``paper`` (the seven points of the paper's figure), ``smoke`` (small, for the CPU), ``tuned``
(this project's own settings).

Sources: alpa-projects/alpa, osdi22_artifact/deepspeed/benchmark_moe.py at commit 8350d913 (the
script as published) and 0f54053e (an earlier state, whose models at 16 and 32 GPUs are those of
the figure), and benchmark/alpa/suite_paper_manual_moe.py at 8350d913 (model sizes).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dsmoe.benchmark.cases.case import Case, ModelCase, Parallel
from dsmoe.benchmark.cases.placement import auto_size, devices_of_a_host
from dsmoe.benchmark.cases.published import published
from dsmoe.common.errors import UsageError
from dsmoe.common.overlay import model_sizes

# The sizes the artifact names; docs/reference/results.md says how near the names are.
MODELS = {
    name: ModelCase(name, size.hidden_size, size.num_layers, size.num_experts)
    for name, size in model_sizes().SIZES.items()
}


# The artifact's script dropped the balance loss (docs/tutorial/from-the-artifact.md).
ARTIFACT_AUXILIARY = 0.01
# How this project trains on GPUs, whatever the model and the batch.
FAST: dict[str, Any] = {"compiled": True, "flat_gradients": True, "cuda_graph": True}


def _artifact(gpus: int, model: str, micro_batches: int, expert_parallel_size: int) -> Case:
    return Case(
        suite="artifact",
        model=MODELS[model],
        parallel=Parallel(gpus, expert_parallel_size),
        global_batch_size=1024,
        micro_batches=micro_batches,
        aux_loss_coefficient=ARTIFACT_AUXILIARY,
        **FAST,
        source="artifact script, commit 8350d913",
    )


def _paper(
    gpus: int, model: str, micro_batches: int, expert_parallel_size: int, source: str
) -> Case:
    return Case(
        suite="paper",
        model=MODELS[model],
        parallel=Parallel(gpus, expert_parallel_size),
        global_batch_size=1024,
        micro_batches=micro_batches,
        aux_loss_coefficient=ARTIFACT_AUXILIARY,
        **FAST,
        source=source,
    )


def _tuned(gpus: int, model: str, size: int, source: str, remat: bool = False) -> Case:
    """Micro-batches of ``size`` sequences; no dropout, as the peers it is measured beside.

    The expert parallel size is that for hosts of eight GPUs; a run takes the one for its hosts.
    """
    experts = MODELS[model].num_experts
    expert_parallel_size = auto_size(gpus, devices_of_a_host(gpus), experts)
    return Case(
        suite="tuned",
        model=MODELS[model],
        parallel=Parallel(gpus, expert_parallel_size),
        global_batch_size=1024,
        micro_batches=1024 // (gpus * size),
        precision="bf16",
        remat=remat,
        dropout=0.0,
        aux_loss_coefficient=ARTIFACT_AUXILIARY,
        **FAST,
        source=source,
    )


# Micro-batches of 128 take 64 GiB (docs/lab/performance.md), the evaluation after them 16 more.
_LARGE_MEMORY = 100 * 2**30


def for_memory(case: Case, memory: int | None) -> Case:
    """``case`` for GPUs of so many bytes: suite tuned takes twice its micro-batch where it fits.

    That is for the cases measured so, of one and two GPUs.
    """
    if case.source != _MEASURED or (memory or 0) < _LARGE_MEMORY or case.micro_batches % 2:
        return case
    return dataclasses.replace(case, micro_batches=case.micro_batches // 2)


_MEASURED = "chosen here by measurement (docs/lab/performance.md)"
_MEASURED_ON_4 = "chosen here; four H100s at micro-batch 32 took 1.07 s (docs/lab/performance.md)"
_PLANNED = "chosen here by the plan for GPUs of 80 GB on hosts of eight; not measured"
_EARLIER = "artifact script, earlier commit 0f54053e"
_NOT_GIVEN = (
    "model from the figure; micro-batches and expert_parallel_size are not given, chosen here"
)

# Byte-sized models; every process count trains on the same global batch.
_SMOKE_MODEL = ModelCase("smoke", 64, 4, 4, num_heads=4, sequence_length=128, vocab_size=320)


def _smoke(processes: int, expert_parallel_size: int) -> Case:
    return Case(
        suite="smoke",
        model=_SMOKE_MODEL,
        parallel=Parallel(processes, expert_parallel_size),
        global_batch_size=16,
        micro_batches=4 // processes,
        precision="fp32",
        remat=False,
        learning_rate=5e-2,
        dropout=0.0,
        second_expert_policy="all",
        aux_loss_coefficient=1e-2,
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
        _tuned(1, "380M", 64, _MEASURED),
        _tuned(2, "690M", 64, _MEASURED),
        _tuned(4, "1.3B", 32, _MEASURED_ON_4),
        _tuned(8, "2.4B", 32, _PLANNED),
        _tuned(16, "10B", 32, _PLANNED),
        _tuned(32, "27B", 16, _PLANNED),
        # without remat it would need micro-batches of 4, so four reductions an iteration
        _tuned(64, "70B", 16, _PLANNED, remat=True),
    ),
}


SUITES["published"] = tuple(published(case, "published") for case in SUITES["artifact"])


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
