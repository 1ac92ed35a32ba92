"""Run one case from the text to the two result files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.cases.suites import Case
from dsmoe.benchmark.data import corpus
from dsmoe.benchmark.preflight.machine import Machine
from dsmoe.benchmark.results.record import RunRecord, failed, finite_or_none, labels, measured
from dsmoe.benchmark.results.store import append, reserved
from dsmoe.benchmark.run import launch
from dsmoe.benchmark.run.folder import (
    CASE,
    DEEPSPEED,
    OUTCOME,
    make_run_folder,
    read_json,
    write_json,
)
from dsmoe.benchmark.run.launch import Job, Limits, Outcome
from dsmoe.benchmark.run.layout import lay_out
from dsmoe.benchmark.run.patched_deepspeed import Trees
from dsmoe.benchmark.run.progress import Progress
from dsmoe.common.errors import ResultsError
from dsmoe.common.interrupts import Interrupted, StopSignals

DEFAULT_TEXT_CAP = 8_000_000
# The first iteration comes after the imports, the model and, on GPUs, the kernels' first use.
FIRST_ITERATION_FACTOR = 3
FIRST_ITERATION_SECONDS = 300.0
TIME_OUT_SECONDS = 600.0


@dataclass(frozen=True)
class Settings:
    """How to run, whatever the case. ``time_out`` in seconds; ``port`` None: a free one.

    ``text``: keyword arguments of ``corpus.prepare``, whose cache is ``cache``. ``tensorboard``:
    the folder for event files. Results go to ``output``. ``hostfile`` and ``master``: the hosts
    and the first one's address; ``output`` and ``cache`` are in a folder that all of them share.
    """

    output: Path
    cache: Path
    text: dict[str, Any]
    time_out: float = TIME_OUT_SECONDS
    port: int | None = None
    tensorboard: Path | None = None
    hostfile: Path | None = None
    master: str | None = None


def text_options(paths: list[str], tokenizer: str | None) -> dict[str, Any]:
    """Keyword arguments of ``corpus.prepare``: named text whole, the default text capped."""
    return {
        "paths": [str(Path(p).expanduser().absolute()) for p in paths],
        "tokenizer": str(Path(tokenizer).expanduser().absolute()) if tokenizer else None,
        "cap": None if paths else DEFAULT_TEXT_CAP,
    }


def prepare_text(cache: Path, options: dict[str, Any], case: Case) -> corpus.Corpus:
    """The text of a run, checked against the model before anything starts."""
    text = corpus.prepare(cache, **options)
    text.check_vocabulary(case.model.vocab)
    return text


def run_name(case: Case) -> str:
    """What the case's run folder is called after its time."""
    return f"{case.suite}-{case.model.name}-{case.parallel.processes}"


def run_case(
    case: Case,
    machine: Machine,
    trees: Trees,
    settings: Settings,
    content: corpus.CorpusInfo,
    stop: StopSignals,
) -> RunRecord:
    """Train ``case`` and append its row and record to the files in ``settings.output``.

    The record's ``status`` says how it ended; a failed run is recorded too, and so is one that is
    interrupted, before Interrupted goes on. Raises DsmoeError for what is wrong before anything
    starts.
    """
    interrupted = None
    layout = lay_out(settings.hostfile, case.parallel.processes)
    with reserved(settings.output):
        try:
            run_dir = make_run_folder(settings.output, run_name(case))
            config = prepare_folder(run_dir, case, machine, settings)
        except OSError as error:
            raise ResultsError(f"{settings.output}: cannot be written: {error.strerror}") from error
        port = settings.port or launch.free_port()
        gpus = machine.gpus
        job = Job(trees.path, run_dir.absolute(), layout, port, settings.master, gpus=gpus)
        losses: list[float] = []
        begin = time.monotonic()
        first_step: float | None = None
        with Progress(case.warmup + case.iterations, case.tokens_per_step) as progress:

            def seen(line: dict[str, Any]) -> None:
                nonlocal first_step
                first_step = first_step or time.monotonic() - begin
                losses.append(line["cross_entropy"])
                progress.iteration(line)

            try:
                outcome = launch.run(job, limits(settings.time_out), seen, progress.note, stop)
            except Interrupted as error:
                interrupted, outcome = error, Outcome(error.exit_code, str(error))
    common = {
        **labels(case, machine.device, machine.instance),
        "num_hosts": layout.hosts,
        "num_devices_per_host": layout.devices,
        "device": machine.device,
        "hardware": machine.hardware,
        "versions": {**machine.versions, "deepspeed": trees.deepspeed},
        "base_tree": trees.base,
        "result_tree": trees.result,
        "deepspeed_config": config,
        "run_folder": str(run_dir.relative_to(settings.output)),
        "data": dict(vars(content)),
        "first_step_seconds": first_step,
        "time_stamp": time.time(),
    }
    with stop.held():
        record = _record(case, common, run_dir, outcome, losses)
        append(settings.output, record)
    if interrupted:
        raise interrupted
    return record


def prepare_folder(
    run_dir: Path, case: Case, machine: Machine, settings: Settings
) -> dict[str, Any]:
    """Write what the training processes read; returns the DeepSpeed configuration."""
    tensorboard = None
    if settings.tensorboard:
        tensorboard = (str(settings.tensorboard.absolute()), run_dir.name)
    config = deepspeed_config(case, machine.device, tensorboard)
    spec = {
        "case": case.to_dict(),
        "cache": str(settings.cache),
        "text": settings.text,
        "limits": vars(limits(settings.time_out)),
    }
    write_json(run_dir / CASE, spec)
    write_json(run_dir / DEEPSPEED, config)
    return config


def limits(time_out: float) -> Limits:
    """Seconds allowed without an iteration, the first one longer."""
    first = max(FIRST_ITERATION_SECONDS, FIRST_ITERATION_FACTOR * time_out)
    return Limits(first, time_out)


def _record(
    case: Case, common: dict[str, Any], run_dir: Path, outcome: Outcome, losses: list[float]
) -> RunRecord:
    reason = outcome.reason
    if reason is None and not (run_dir / OUTCOME).is_file():
        reason = f"the launcher reported success, but {run_dir / OUTCOME} is missing"
    if reason is None:
        return RunRecord(**common, **_figures(case, read_json(run_dir / OUTCOME)))
    return RunRecord(
        **common,
        **failed(case, reason),
        parameter_count=case.model.parameter_count,
        losses=finite_or_none(losses),
    )


def _figures(case: Case, outcome: dict[str, Any]) -> dict[str, Any]:
    return {
        **measured(case, outcome["step_seconds"]),
        "warmup_seconds": outcome["warmup_seconds"],
        "losses": finite_or_none(outcome["losses"]),
        "held_out_loss": outcome["held_out_loss"],
        "expert_load": outcome["expert_load"],
        "kernels": outcome["kernels"],
        "peak_memory_bytes": outcome["peak_memory_bytes"],
        "skipped_steps": outcome["skipped_steps"],
        "parameter_count": outcome["parameter_count"],
    }
