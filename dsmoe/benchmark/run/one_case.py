"""Run one case from the text to the two result files."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.deepspeed_config import deepspeed_config
from dsmoe.benchmark.data import corpus
from dsmoe.benchmark.data.batches import WindowSampler
from dsmoe.benchmark.data.pair_names import is_pair
from dsmoe.benchmark.data.sources import in_words
from dsmoe.benchmark.data.tokenizer import check_vocabulary, load_tokenizer
from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.predict.rates.choose_cluster import prediction_here
from dsmoe.benchmark.results.record import (
    RunRecord,
    energy,
    failed,
    finite_or_none,
    labels,
    measured,
)
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
from dsmoe.benchmark.run.launch import LauncherEnd
from dsmoe.benchmark.run.layout import Layout
from dsmoe.benchmark.run.patched_deepspeed import Trees
from dsmoe.benchmark.run.progress import Progress
from dsmoe.benchmark.run.request import Request, run_name
from dsmoe.common.errors import ResultsError
from dsmoe.common.interrupts import Interrupted, StopSignals


def prepare_text(request: Request, case: Case) -> corpus.Corpus:
    """The text of a run, checked against the model before anything starts.

    What was left out is printed; a tokenizer that does not fit is refused before it is used, and
    a text too short for one iteration before a process starts. Raises DataError.
    """
    paths, tokenizer = request.text.paths, request.text.tokenizer
    if not is_pair(paths):
        size = load_tokenizer(tokenizer).vocab_size
        check_vocabulary(size - 1, case.model.vocab_size, tokenizer or "bytes")
    text = corpus.prepare(request.cache, **request.text.options(), surveyed=request.surveyed)
    text.check_vocabulary(case.model.vocab_size)
    if paths and not is_pair(paths):
        print(f"  {in_words(text.info.documents, text.info.left_out)}", flush=True)
    WindowSampler(text.train, case.model.sequence_length, case.global_batch_size)
    return text


def run_case(
    case: Case,
    layout: Layout,
    request: Request,
    trees: Trees,
    content: corpus.CorpusInfo,
    stop: StopSignals,
) -> RunRecord:
    """Train ``case`` and append its row and record to the files in the output folder.

    The record's ``status`` says how it ended; a failed run is recorded too, and so is one that is
    interrupted, before Interrupted goes on. Raises DsmoeError for what is wrong before anything
    starts.
    """
    interrupted = None
    machine = request.machine
    with reserved(request.output):
        try:
            run_dir = make_run_folder(request.output, run_name(case))
            config = prepare_folder(run_dir, case, request, content)
        except OSError as error:
            raise ResultsError(f"{request.output}: cannot be written: {error.strerror}") from error
        job = Job(
            trees.path,
            run_dir.absolute(),
            layout,
            request.port,
            request.master,
            gpus=machine.gpus,
        )
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
                outcome = launch.run(
                    job, request.limits, seen, progress.note, stop, request.launcher
                )
            except Interrupted as error:
                interrupted, outcome = error, LauncherEnd(error.exit_code, str(error))
    common = {
        **labels(case, machine.device, request.instance),
        "num_hosts": layout.hosts,
        "num_devices_per_host": layout.devices,
        "device": machine.device,
        "hardware": machine.hardware,
        "versions": {**machine.versions, "deepspeed": trees.deepspeed},
        "base_tree": trees.base,
        "result_tree": trees.result,
        "deepspeed_config": config,
        "run_folder": str(run_dir.relative_to(request.output)),
        "data": dict(vars(content)),
        "first_step_seconds": first_step,
        "time_stamp": time.time(),
        "predicted": prediction_here(case, layout.devices, machine),
    }
    with stop.held():
        record = _record(case, common, run_dir, outcome, losses, request.link)
        append(request.output, record)
    if interrupted:
        raise interrupted
    return record


def prepare_folder(
    run_dir: Path, case: Case, request: Request, content: corpus.CorpusInfo
) -> dict[str, Any]:
    """Write what the training processes read; returns the DeepSpeed configuration."""
    tensorboard = None
    if request.tensorboard:
        tensorboard = (str(request.tensorboard.absolute()), run_dir.name)
    config = deepspeed_config(case, request.machine.device, tensorboard)
    spec = {
        "case": case.to_dict(),
        "cache": str(request.cache),
        "text": request.text.options(),
        "known": asdict(content),
        "limits": vars(request.limits),
        "link": request.link,
    }
    write_json(run_dir / CASE, spec)
    write_json(run_dir / DEEPSPEED, config)
    return config


def _record(
    case: Case,
    common: dict[str, Any],
    run_dir: Path,
    ended: LauncherEnd,
    losses: list[float],
    link: str | None,
) -> RunRecord:
    """The record of a run; one whose iterations finished keeps their figures, however it ended."""
    outcome = run_dir / OUTCOME
    if outcome.is_file():
        figures = _figures(case, read_json(outcome))
        if link:
            figures["link"] = {"name": link, **figures["link"]}
        return RunRecord(**common, **figures, evaluation_error=ended.reason)
    reason = ended.reason or f"the launcher reported success, but {outcome} is missing"
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
        "kernels": outcome["kernels"],
        "skipped_steps": outcome["skipped_steps"],
        "parameter_count": outcome["parameter_count"],
        # these are taken after the last iteration, and may be missing
        "link": outcome.get("link", {}),
        **energy(case, len(outcome["step_seconds"]), outcome.get("energy_joules")),
        "peak_memory_bytes": outcome.get("peak_memory_bytes"),
        "expert_load": outcome.get("expert_load", []),
        "dropped_share": finite_or_none(outcome.get("dropped_share", [])),
        "held_out_loss": outcome.get("held_out_loss"),
    }
