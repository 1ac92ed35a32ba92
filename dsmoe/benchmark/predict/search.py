"""The settings of a case, ranked by predicted time among those that fit the memory."""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass
from typing import Iterator

from dsmoe.benchmark.cases.case import PIPELINE_SCHEDULES, Case, Parallel
from dsmoe.benchmark.cases.choice import Changes
from dsmoe.benchmark.cases.placement import AUTO
from dsmoe.benchmark.plan.estimate import CUDA_CONTEXT_BYTES
from dsmoe.benchmark.predict.amounts.work import PARTS
from dsmoe.benchmark.predict.memory import pipeline_peak_bytes
from dsmoe.benchmark.predict.pipelines import predict_pipeline, stage_case
from dsmoe.benchmark.predict.rates.cluster import Cluster
from dsmoe.benchmark.predict.time import Prediction
from dsmoe.common.tables import WIDTH, columns

#: Share of a device's memory that a plan may use: the allocator's free blocks come on top.
USABLE = 0.92
#: Pipeline stages that a search tries.
STAGES = (1, 2, 4, 8, 16)
ANY = Changes()


class NothingFits(Exception):
    """No setting fits the memory; ``str(error)`` says how many were tried."""


@dataclass(frozen=True)
class SplitCandidate:
    """One setting, its prediction and the bytes of a process at the peak.

    ``case`` is the whole case, or as one of its stages has it where ``stages`` is more than 1.
    """

    case: Case
    stages: int
    schedule: str
    found: Prediction
    peak: int

    @property
    def words(self) -> str:
        """The options of dsmoe run that make it."""
        case, parallel = self.case, self.case.parallel
        words = [
            f"--expert-parallel {parallel.expert_parallel_size}",
            f"--zero-stage {parallel.zero_stage}",
            f"--micro-batch-size {case.micro_batch_size}",
            "--remat" if case.remat else "--no-remat",
        ]
        if case.reduce:
            words.insert(2, f"--reduce {case.reduce}")
        if self.stages > 1:
            words.insert(0, f"--pipeline {self.stages} --pipeline-schedule {self.schedule}")
        return " ".join(words)


def search(
    case: Case,
    cluster: Cluster,
    memory: int,
    stages: tuple[int, ...] = STAGES,
    asked: Changes = ANY,
) -> tuple[list[SplitCandidate], int]:
    """The settings of ``case`` that fit into ``memory`` bytes a device, fastest first; and how many
    were tried: those that have what is ``asked`` for. Raises NothingFits."""
    context = CUDA_CONTEXT_BYTES if cluster.device == "cuda" else 0
    tried = 0
    found: list[SplitCandidate] = []
    for number in stages:
        for setting in _settings(case, number):
            for schedule in PIPELINE_SCHEDULES if number > 1 else ("1f1b",):
                if not _has(asked, setting, number, schedule):
                    continue
                tried += 1
                peak = pipeline_peak_bytes(setting, number, schedule) + context
                if peak <= USABLE * memory:
                    prediction = predict_pipeline(setting, cluster, number, schedule)
                    found.append(SplitCandidate(setting, number, schedule, prediction, peak))
    if not tried:
        raise NothingFits("no setting of the search has the options that are given; leave some out")
    if not found:
        raise NothingFits(
            f"none of {tried} settings fits into {memory / 2**30:.3g} GiB a device; take more GPUs"
        )
    # of equal times the one that takes less memory
    found.sort(key=lambda one: (one.found.seconds, one.peak))
    return found, tried


def _has(asked: Changes, setting: Case, stages: int, schedule: str) -> bool:
    """Whether a setting has the values that are asked for; "auto" leaves one to the search."""
    parallel = setting.parallel
    pairs = (
        (asked.pipeline_parallel_size, stages),
        (asked.pipeline_schedule, schedule),
        (asked.expert_parallel_size, parallel.expert_parallel_size),
        (asked.zero_stage, parallel.zero_stage),
        (asked.reduce, setting.reduce),
        (asked.micro_batch_size, setting.micro_batch_size),
        (asked.micro_batches, setting.micro_batches),
        (asked.remat, setting.remat),
    )
    return all(wanted in (None, AUTO, value) for wanted, value in pairs)


def _settings(case: Case, stages: int) -> Iterator[Case]:
    """Every setting of ``case`` that can be; for a pipeline of ``stages``, as each stage has it."""
    parallel, experts = case.parallel, case.model.num_experts
    if parallel.processes % stages or stages > case.model.num_layers:
        return
    if parallel.pipeline_parallel_size > 1:  # its own pipeline is one of those that are tried
        graph = case.compiled and case.flat_gradients
        cut = Parallel(parallel.processes)
        case = dataclasses.replace(case, parallel=cut, micro_batches=1, cuda_graph=graph)
    width = parallel.processes // stages
    share = case.global_batch_size // width
    sizes = [n for n in range(1, min(width, experts) + 1) if width % n == experts % n == 0]
    reductions: tuple[tuple[int, str | None], ...] = ((2, None),)
    if stages > 1:  # ZeRO-1, and no graph
        reductions = ((1, "step"),)
        case = dataclasses.replace(case, cuda_graph=False)
    elif width > 1 and case.flat_gradients:
        reductions = ((2, "micro_batch"), (2, "step"), (1, None))
    for batch in (n for n in (1, 2, 4, 8, 16, 32, 64, 128) if share % n == 0):
        if share // batch < stages:
            continue
        alone = Parallel(parallel.processes)
        plain = dataclasses.replace(case, parallel=alone, reduce=None, reduce_reason="")
        stage = stage_case(plain, stages, share // batch)
        for size in sizes:
            for zero, reduce in reductions:
                cut = Parallel(width, size, zero)
                for remat in (False, True):
                    yield dataclasses.replace(stage, parallel=cut, reduce=reduce, remat=remat)


def next_best(found: list[SplitCandidate]) -> SplitCandidate:
    """The first after the best that differs from it in time or memory; the second where none does:
    what is hidden costs nothing."""
    best = found[0]
    others = (
        one
        for one in found[1:]
        if one.peak != best.peak or one.found.seconds > best.found.seconds * (1 + 1e-6)
    )
    return next(others, found[1])


def explanation(best: SplitCandidate, other: SplitCandidate) -> str:
    """Why ``best`` is faster than ``other``, in a sentence."""
    gains = {
        name: other.found.exposed[name] - best.found.exposed[name]
        for name in PARTS
        if other.found.exposed[name] != best.found.exposed[name]
    }
    saved = other.found.seconds - best.found.seconds
    if not gains or saved <= 1e-9:
        least = f"the first needs {_gib(best.peak)}, the next {_gib(other.peak)}"
        return f"both take the same time; {least}"
    part = max(gains, key=lambda name: gains[name])
    loss = min(gains, key=lambda name: gains[name])
    piped = best.stages > 1 or other.stages > 1
    names = {"exchange": "exchange and messages between stages"} if piped else {}
    words = (
        f"it takes {saved:.3g} s less than the next, which takes {gains[part]:.3g} s more for "
        f"{names.get(part, part)}"
    )
    if gains[loss] < -0.01 * saved:
        words += f" and {-gains[loss]:.3g} s less for {names.get(loss, loss)}"
    return f"{words}; the next is {other.words}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def search_lines(found: list[SplitCandidate], tried: int, memory: int, shown: int = 8) -> list[str]:
    """The fastest settings as lines of at most 80 columns, with the options of the first; they can
    be pasted into a shell."""
    head = ("s", "GiB", "stages", "expert parallel", "ZeRO", "reduce", "micro-batch", "remat")
    rows = [
        (
            f"{one.found.seconds:.4g}",
            f"{one.peak / 2**30:.1f}",
            f"{one.stages} {one.schedule}" if one.stages > 1 else "1",
            str(one.case.parallel.expert_parallel_size),
            str(one.case.parallel.zero_stage),
            one.case.reduce or "-",
            f"{one.case.micro_batches} x {one.case.micro_batch_size}",
            "yes" if one.case.remat else "no",
        )
        for one in found[:shown]
    ]
    title = f"{len(found)} of {tried} settings fit into {_gib(memory)} a device; the fastest:"
    options = textwrap.wrap(found[0].words, WIDTH - 4, break_on_hyphens=False)
    pasted = " \\\n".join("  " + piece for piece in options).splitlines()
    return [title, *columns([head, *rows]), "options of the first:", *pasted]
