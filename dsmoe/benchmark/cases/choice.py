"""From a suite's cases and the changes that a user asks for to the cases of a run."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Callable

from dsmoe.benchmark.cases.case import PAPER_SUITES, Case, ModelCase, Parallel
from dsmoe.benchmark.cases.pipelines import (
    Fastest,
    pipeline_of,
    refuse_auto,
    schedule_of,
    with_every_pipeline,
)
from dsmoe.benchmark.cases.placement import AUTO, auto_size, devices_of_a_host, stage_width
from dsmoe.benchmark.cases.published import published, refuse_changes
from dsmoe.benchmark.cases.reduction import with_reduce
from dsmoe.benchmark.cases.suites import MODELS, SUITES, find_case, for_memory
from dsmoe.common.errors import UsageError
from dsmoe.common.typed import program

# Suites without a published expert parallel size: it is chosen for the hosts.
AUTO_SUITES = ("smoke", "tuned")
GPU_SUITES = ("artifact", "paper", "published", "scaled", "tuned")
# Changes with which a case was not measured at the larger micro-batch.
_OTHER_MEMORY = (
    "num_experts",
    "precision",
    "remat",
    "compiled",
    "moe_implementation",
    "zero_stage",
)
# Changes that a case can have only with a value of reduce.
_OF_A_REDUCTION = ("reduce_dtype", "hierarchical")


@dataclass(frozen=True)
class Changes:
    """Settings in place of a case's own, by their names in the case; None: as the case has it.

    ``micro_batch_size`` instead of ``micro_batches`` says how many sequences one has.
    ``expert_parallel_size`` may be "auto": the size for the hosts (placement.py); so may
    ``pipeline_parallel_size``: the fastest by prediction (pipelines.py).
    ``tensorboard``: whether event files are written, which a CUDA graph does not go with.
    """

    num_experts: int | None = None
    zero_stage: int | None = None
    expert_parallel_size: int | str | None = None
    expert_layout: str | None = None
    pipeline_parallel_size: int | str | None = None
    pipeline_schedule: str | None = None
    precision: str | None = None
    remat: bool | None = None
    micro_batches: int | None = None
    micro_batch_size: int | None = None
    global_batch_size: int | None = None
    optimizer: str | None = None
    adafactor_mode: str | None = None
    moe_implementation: str | None = None
    compiled: bool | None = None
    flat_gradients: bool | None = None
    reduce: str | None = None
    reduce_dtype: str | None = None
    hierarchical: bool | None = None
    cuda_graph: bool | None = None
    iterations: int | None = None
    warmup: int | None = None
    seed: int | None = None
    deterministic: bool | None = None
    artifact_ids: bool | None = None
    tensorboard: bool | None = None


@dataclass(frozen=True)
class WantedCases:
    """The case of ``suite`` (None: the device's default) for ``gpus``; ``every``: all up to it.

    ``method``: "published" trains a case of the paper as the artifact did (published.py).
    """

    gpus: int
    suite: str | None = None
    every: bool = False
    method: str | None = None
    changes: Changes = Changes()


def chosen_cases(
    wanted: WantedCases,
    device: str,
    memory: int | None = None,
    devices_of: Callable[[int], int] = devices_of_a_host,
    fastest: Fastest = refuse_auto,
) -> list[Case]:
    """The cases that are wanted, with the changes made.

    ``device`` is cpu or cuda, ``memory`` the bytes of a GPU where known (suites.for_memory, and
    when gradients are reduced: reduction.py).
    ``devices_of(processes)``: how many of a run's processes are on each host. ``fastest`` picks
    the pipeline of --pipeline auto.
    Raises UsageError for a case that the suite lacks, or that cannot be.
    """
    suite = wanted.suite or ("artifact" if device == "cuda" else "smoke")
    if wanted.suite is None and device == "cpu":
        _check_smoke(wanted.gpus, wanted.every)
    if wanted.every:
        cases = [case for case in SUITES[suite] if case.parallel.processes <= wanted.gpus]
        cases = cases or [find_case(suite, wanted.gpus)]  # which says what the suite has
    else:
        cases = [find_case(suite, wanted.gpus)]
    other = any(getattr(wanted.changes, name) is not None for name in _OTHER_MEMORY)
    measured = None if other and not wanted.every else memory
    cases = [for_memory(case, measured) for case in cases]
    if wanted.method == "published" and suite != "published":
        cases = [published(case) for case in cases]
    return [
        changed(case, wanted.changes, devices_of(case.parallel.processes), memory, fastest)
        for case in cases
    ]


def _check_smoke(processes: int, every: bool) -> None:
    """Say that there is no GPU, where a number is one of the artifact's cases and not smoke's."""
    known = [case.parallel.processes for case in SUITES["smoke"]]
    if processes not in known and not (every and processes > min(known)):
        raise UsageError(
            f"{processes}: no GPU was found here, and without one the suite is smoke, which has "
            f"cases for {', '.join(map(str, known))} CPU processes; name one of these, or see what "
            f"the artifact's case needs: {program('plan')} {processes} --suite artifact"
        )


def check_device(cases: list[Case], device: str, available: int | None) -> None:
    """Raises UsageError for cases that this machine cannot run.

    ``available`` GPUs are here; None where the processes run on the CPU.
    """
    for case in cases:
        if device == "cpu" and case.suite in GPU_SUITES:
            raise UsageError(
                f"suite {case.suite} needs GPUs and none was found here; expected --suite smoke "
                f"(the default without GPUs), or see what the case needs: {program('plan')} "
                f"{case.parallel.processes} --suite {case.suite}"
            )
        if available is not None and case.parallel.processes > available:
            raise UsageError(
                f"{case.parallel.processes} GPUs are asked for and this machine has {available}; "
                "name at most that many, or write host files for several machines with dsmoe hosts "
                "and name one with --hostfile"
            )


def changed(
    case: Case,
    changes: Changes,
    devices: int,
    memory: int | None = None,
    fastest: Fastest = refuse_auto,
) -> Case:
    """``case`` with ``changes``, on hosts of ``devices`` processes with ``memory`` bytes each
    (None: not known). Raises UsageError where they do not fit."""
    if changes.pipeline_parallel_size == AUTO:
        made = functools.partial(changed, memory=memory)
        return fastest(with_every_pipeline(case, changes, devices, made), devices)
    if case.method == "published":
        refuse_changes(changes)
    if changes.adafactor_mode and (changes.optimizer or case.optimizer) != "adafactor":
        raise UsageError("--adafactor-mode is for --optimizer adafactor alone; leave one out")
    names = {field.name for field in dataclasses.fields(Case)}
    given = {k: v for k, v in vars(changes).items() if v is not None}
    replaced: dict[str, Any] = {name: value for name, value in given.items() if name in names}
    if changes.global_batch_size is not None:
        _refuse_paper(case, "--global-batch: the cases")
    batch = changes.global_batch_size or case.global_batch_size
    if changes.num_experts is not None:
        replaced["model"] = _with_experts(case, changes.num_experts)
    replaced["parallel"] = parallel = _parallel(case, changes, devices)
    replaced["micro_batches"] = _micro_batches(case, changes, batch, parallel)
    if changes.moe_implementation == "deepspeed":
        replaced["second_expert_policy"] = "sampling"  # it has no other
    # What cannot go with a change is switched off, unless it was asked for: then it is refused.
    if parallel.pipeline_parallel_size > 1:
        if changes.tensorboard:
            raise UsageError(
                "--tensorboard with a pipeline: the loss is in the last stage, and DeepSpeed writes"
                " from the first; leave one of the two out (dsmoe train writes curves of its own)"
            )
        replaced.setdefault("flat_gradients", parallel.zero_stage == 1)
        replaced.setdefault("cuda_graph", False)
    if changes.zero_stage == 0:
        replaced.setdefault("flat_gradients", False)
    if replaced.get("flat_gradients") is False:
        replaced.setdefault("reduce", None)
    if changes.moe_implementation == "deepspeed":
        replaced.setdefault("compiled", False)
    fast = [replaced.get(name, getattr(case, name)) for name in ("compiled", "flat_gradients")]
    if changes.tensorboard or not all(fast):
        replaced.setdefault("cuda_graph", False)
    elif case.parallel.pipeline_parallel_size > 1 == parallel.pipeline_parallel_size:
        replaced.setdefault("cuda_graph", True)
    if changes.reduce is None and case.reduce is None:
        # what goes with "step" alone comes after the choice
        late = {name: replaced.pop(name) for name in _OF_A_REDUCTION if name in replaced}
        case, replaced = with_reduce(dataclasses.replace(case, **replaced), devices, memory), late
    return dataclasses.replace(case, **replaced)


def _parallel(case: Case, changes: Changes, devices: int) -> Parallel:
    parallel = case.parallel
    layout = changes.expert_layout or parallel.expert_layout
    stages = pipeline_of(case, changes.pipeline_parallel_size)
    width = stage_width(parallel.processes, stages, devices)
    zero_stage = parallel.zero_stage if changes.zero_stage is None else changes.zero_stage
    if stages > 1 and changes.zero_stage is None:
        zero_stage = min(zero_stage, 1)  # a pipeline has no other
    size = changes.expert_parallel_size
    experts = changes.num_experts or case.model.num_experts
    free = case.suite in AUTO_SUITES or changes.expert_layout
    # The case's own is for its stages and, where it may be another one, for one host. Where it has
    # no expert parallelism there, a stage, which holds fewer layers, needs none either.
    same = stages == parallel.pipeline_parallel_size or parallel.expert_parallel_size == 1
    as_meant = same and width <= devices
    own = as_meant and not changes.expert_layout and experts % parallel.expert_parallel_size == 0
    outside = width % parallel.expert_parallel_size
    if size == AUTO or (size is None and (outside or (free and not own))):
        size = auto_size(width, min(devices, width), experts, layout)
    return dataclasses.replace(
        parallel,
        zero_stage=zero_stage,
        expert_layout=layout,
        expert_parallel_size=parallel.expert_parallel_size if size is None else int(size),
        pipeline_parallel_size=stages,
        pipeline_schedule=schedule_of(parallel, stages, changes.pipeline_schedule),
    )


def _with_experts(case: Case, count: int) -> ModelCase:
    """The case's model with ``count`` experts, under a name that says so."""
    _refuse_paper(case, "--num-experts: the models")
    return dataclasses.replace(case.model, name=f"{case.model.name}-E{count}", num_experts=count)


def _refuse_paper(case: Case, what: str) -> None:
    if case.suite in PAPER_SUITES:
        raise UsageError(
            f"{what} of suite {case.suite} are the paper's, and its figure is drawn from them; "
            "take --suite tuned or smoke"
        )


def _micro_batches(case: Case, changes: Changes, global_batch_size: int, parallel: Parallel) -> int:
    size = changes.micro_batch_size
    if size is None:  # more stages, fewer processes for them: a micro-batch keeps its size
        whole = case.micro_batches * parallel.pipeline_parallel_size
        return changes.micro_batches or max(1, whole // case.parallel.pipeline_parallel_size)
    processes = parallel.data_parallel_size
    count, rest = divmod(global_batch_size, processes * size)
    if rest or changes.micro_batches not in (None, count):
        several = f"{changes.micro_batches} times " if changes.micro_batches else ""
        raise UsageError(
            f"--micro-batch-size {size}: {several}{size} sequences on {processes} processes do not "
            f"make the global batch of {global_batch_size}; give one of --micro-batches and "
            f"--micro-batch-size, with a size that divides {global_batch_size // processes}"
        )
    return count


def case_of_model(
    name: str,
    gpus: int,
    changes: Changes,
    devices_of: Callable[[int], int] = devices_of_a_host,
    memory: int | None = None,
    fastest: Fastest = refuse_auto,
) -> Case:
    """A case of a named model on any number of GPUs, for a plan. Raises UsageError."""
    if name not in MODELS:
        raise UsageError(f"model {name!r}: expected one of {', '.join(MODELS)}")
    base = find_case("artifact", 1)
    model = MODELS[name]
    batch = changes.global_batch_size or max(base.global_batch_size, gpus)
    if batch % gpus:
        raise UsageError(
            f"a global batch of {batch} sequences does not divide among {gpus} GPUs; give "
            f"--global-batch with a multiple of {gpus}"
        )
    if changes.expert_parallel_size is None:
        changes = dataclasses.replace(changes, expert_parallel_size=AUTO)
    each = batch // gpus
    size = changes.micro_batch_size or max(n for n in (1, 2, 4, 8) if each % n == 0)
    case = dataclasses.replace(
        base,
        suite="plan",
        model=model,
        parallel=Parallel(gpus),
        global_batch_size=batch,
        micro_batches=max(1, each // size),
        source="chosen for a plan",
    )
    return changed(case, changes, devices_of(gpus), memory, fastest)


def in_words(case: Case, unit: str = "process") -> str:
    """``case`` on one line; ``unit`` is what its processes are called."""
    many = "" if case.parallel.processes == 1 else "es" if unit.endswith("s") else "s"
    parallel = case.parallel
    stages = parallel.pipeline_parallel_size
    named = case.suite if case.suite == case.model.name else f"{case.suite} {case.model.name}"
    piped = f"pipeline {stages} {parallel.pipeline_schedule}, " if stages > 1 else ""
    return (
        f"{named} on {parallel.processes} {unit}{many}: "
        f"{piped}ZeRO-{parallel.zero_stage}, "
        f"expert parallel {parallel.expert_parallel_size}"
        f"{' across hosts' if parallel.expert_layout == 'across' else ''}, {case.optimizer}, "
        f"{case.precision}, {case.micro_batches} x {case.micro_batch_size} sequences"
        f"{', remat' if case.remat else ''}{_reduced(case)}"
    )


def _reduced(case: Case) -> str:
    if case.reduce is None:
        return ""
    dtype = f" in {case.reduce_dtype}" if case.reduce_dtype not in (None, "same") else ""
    why = f" ({case.reduce_reason})" if case.reduce_reason else ""
    return f", gradients reduced each {case.reduce.replace('_', '-')}{dtype}{why}"
