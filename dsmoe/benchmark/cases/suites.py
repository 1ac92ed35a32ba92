"""The benchmark's cases as data: model, batch, parallelism, precision, rematerialisation.

Suites: ``artifact`` (the cases of the artifact's script), ``published`` (the same, trained as it
was), ``paper`` (the seven points of the paper's figure), ``scaled`` (these models, with the fastest
parallelism for the paper's hosts), ``smoke`` (small, for the CPU), ``tuned`` (this project's own
settings).

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
from dsmoe.common.overlay_modules import model_sizes

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


def _tuned(
    gpus: int,
    model: str,
    size: int,
    source: str,
    pipeline: int = 1,
    expert_parallel_size: int | None = None,
) -> Case:
    """Micro-batches of ``size`` sequences; no dropout, as the peers it is measured beside.

    The expert parallel size is that for hosts of eight GPUs, where no other was measured to be
    faster; a run on several hosts takes the one for its hosts.
    """
    experts, width = MODELS[model].num_experts, gpus // pipeline
    inside = expert_parallel_size or auto_size(width, devices_of_a_host(width), experts)
    case = Case(
        suite="tuned",
        model=MODELS[model],
        parallel=Parallel(gpus, inside),
        global_batch_size=1024,
        micro_batches=1024 // (gpus * size),
        precision="bf16",
        remat=False,
        dropout=0.0,
        aux_loss_coefficient=ARTIFACT_AUXILIARY,
        **FAST,
        source=source,
    )
    return _in_stages(case, pipeline, size) if pipeline > 1 else case


def _in_stages(case: Case, stages: int, size: int, schedule: str = "eager") -> Case:
    """``case`` in a pipeline with micro-batches of ``size``, reduced once a step in 16 bit."""
    cut = dataclasses.replace(
        case.parallel, pipeline_parallel_size=stages, zero_stage=1, pipeline_schedule=schedule
    )
    return dataclasses.replace(
        case,
        parallel=cut,
        micro_batches=case.global_batch_size // (cut.data_parallel_size * size),
        reduce="step",
        cuda_graph=False,  # one holds one micro-batch's two passes
    )


def _scaled(
    gpus: int,
    expert_parallel_size: int,
    size: int,
    *,
    stages: int = 1,
    remat: bool = False,
    source: str | None = None,
) -> Case:
    """The paper's case for ``gpus``, with micro-batches of ``size`` and what --search found."""
    paper = next(c for c in SUITES["paper"] if c.parallel.processes == gpus)
    found = dataclasses.replace(
        paper,
        suite="scaled",
        parallel=Parallel(gpus, expert_parallel_size),
        micro_batches=1024 // (gpus * size) if stages == 1 else paper.micro_batches,
        remat=remat,
        reduce="micro_batch" if stages == 1 < gpus else None,
        source=source or _SEARCHED,
    )
    return _in_stages(found, stages, size) if stages > 1 else found


# Micro-batches of 128 take 64 GiB (docs/lab/performance.md), the evaluation after them 16 more.
_LARGE_MEMORY = 100 * 2**30


def for_memory(case: Case, memory: int | None) -> Case:
    """``case`` for GPUs of so many bytes: suite tuned takes twice its micro-batch where it fits.

    That is for the cases measured so, of one, two and four GPUs.
    """
    measured = case.source in (_MEASURED, _MEASURED_ON_4)
    if not measured or (memory or 0) < _LARGE_MEMORY or case.micro_batches % 2:
        return case
    return dataclasses.replace(case, micro_batches=case.micro_batches // 2)


_MEASURED = "chosen here by measurement (docs/lab/performance.md)"
_MEASURED_ON_4 = "chosen here by measurement on four H200s (docs/lab/performance.md)"
_PLANNED = "chosen here by the plan for GPUs of 80 GB on hosts of eight; not measured"
_PIPED = "dsmoe plan N --suite tuned --search --cluster h100-400g; not measured"
_SEARCHED = "dsmoe plan N --suite paper --search --cluster p3.16xlarge; not measured"
_SEARCHED_32 = (
    "dsmoe plan 64 --suite paper --search --cluster p3.16xlarge --device-memory 32, since nothing "
    "fits 16 GB; not measured"
)
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
        _tuned(4, "1.3B", 32, _MEASURED_ON_4, expert_parallel_size=1),
        _tuned(8, "2.4B", 32, _PLANNED),
        _tuned(16, "10B", 8, _PIPED, pipeline=2),
        _tuned(32, "27B", 8, _PIPED, pipeline=4),
        _tuned(64, "70B", 4, _PIPED, pipeline=8),
    ),
}


SUITES["scaled"] = (
    _scaled(1, 1, 16),
    _scaled(2, 2, 16),
    _scaled(4, 4, 8),
    _scaled(8, 8, 8),
    _scaled(16, 8, 2, stages=2),
    _scaled(32, 8, 4, stages=4, remat=True),
    # micro-batches of 2 without remat would be 13 % faster, and take 31.4 of 32 GiB
    _scaled(64, 8, 4, stages=8, remat=True, source=_SEARCHED_32),
)
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
