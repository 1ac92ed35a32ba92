"""Run one case from the text to the two result files."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsmoe import __version__
from dsmoe.benchmark import corpus, launch
from dsmoe.benchmark.checkout import Trees
from dsmoe.benchmark.deepspeed_config import deepspeed_config
from dsmoe.benchmark.progress import Progress
from dsmoe.benchmark.record import RunRecord, failed, finite_or_none, labels, measured
from dsmoe.benchmark.results import append
from dsmoe.benchmark.run_folder import (
    CASE,
    DEEPSPEED,
    OUTCOME,
    make_run_folder,
    read_json,
    write_json,
)
from dsmoe.benchmark.suites import Case
from dsmoe.errors import EnvironmentProblem

DEFAULT_TEXT_CAP = 8_000_000


@dataclass(frozen=True)
class Machine:
    """Where the case runs: one host, ``device`` cpu or cuda, and what it says of itself."""

    device: str
    instance: str
    hardware: dict[str, Any]
    versions: dict[str, str]


def this_machine(instance: str | None = None) -> Machine:
    """This host as torch sees it. Raises EnvironmentProblem where torch is missing."""
    try:
        import torch
    except ImportError as error:
        raise EnvironmentProblem(
            f"torch cannot be imported ({error}); run ./run_deepspeed_benchmark.sh, which sets up "
            "what is missing, or install requirements.txt"
        ) from error
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dsmoe": __version__,
        "deepspeed": "0.5.6 (bd3ebd)",
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        versions["cuda"] = str(torch.version.cuda)
        hardware = {
            "device_name": properties.name,
            "device_count": torch.cuda.device_count(),
            "device_memory_bytes": properties.total_memory,
        }
        return Machine("cuda", instance or properties.name.replace(" ", "-"), hardware, versions)
    hardware = {"device_name": platform.processor() or platform.machine(), "cores": _cores()}
    return Machine("cpu", "cpu", hardware, versions)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def text_options(paths: list[str], tokenizer: str | None) -> dict[str, Any]:
    """Keyword arguments of ``corpus.prepare``: named text whole, the default text capped."""
    return {
        "paths": [str(Path(p).expanduser().absolute()) for p in paths],
        "tokenizer": tokenizer,
        "cap": None if paths else DEFAULT_TEXT_CAP,
    }


def prepare_text(cache: Path, options: dict[str, Any], case: Case) -> corpus.Corpus:
    """The text of a run, checked against the model before anything starts."""
    text = corpus.prepare(cache, **options)
    text.check_vocabulary(case.model.vocab)
    return text


def run_case(
    case: Case, machine: Machine, trees: Trees, output: Path, cache: Path, text: dict[str, Any]
) -> RunRecord:
    """Train ``case`` and append its row and record to the files in ``output``.

    The record's ``status`` says how it ended; a failed run is recorded too. Raises DsmoeError
    for what is wrong before anything starts.
    """
    run_dir = make_run_folder(output, f"{case.suite}-{case.model.name}-{case.parallel.processes}")
    spec = {"case": case.to_dict(), "cache": str(cache), "text": text}
    write_json(run_dir / CASE, spec)
    write_json(run_dir / DEEPSPEED, deepspeed_config(case, machine.device))
    args = launch.command(trees.path, run_dir, case.parallel.processes, launch.free_port())
    env = launch.environment(trees.path, case.parallel.processes)
    with Progress(case.warmup + case.iterations, case.tokens_per_step) as progress:
        outcome = launch.run(args, env, run_dir, progress.iteration)
    common = {
        **labels(case, machine.device, machine.instance),
        "num_hosts": 1,
        "num_devices_per_host": case.parallel.processes,
        "device": machine.device,
        "hardware": machine.hardware,
        "versions": machine.versions,
        "base_tree": trees.base,
        "result_tree": trees.result,
    }
    if outcome.code:
        record = RunRecord(
            **common,
            **failed(case, outcome.reason or ""),
            parameter_count=case.model.parameter_count,
        )
    else:
        record = RunRecord(**common, **_figures(case, read_json(run_dir / OUTCOME)))
    append(output, record)
    return record


def _figures(case: Case, outcome: dict[str, Any]) -> dict[str, Any]:
    return {
        **measured(case, outcome["step_seconds"]),
        "warmup_seconds": outcome["warmup_seconds"],
        "losses": finite_or_none(outcome["losses"]),
        "held_out_loss": outcome["held_out_loss"],
        "expert_load": outcome["expert_load"],
        "peak_memory_bytes": outcome["peak_memory_bytes"],
        "parameter_count": outcome["parameter_count"],
        "data": outcome["text"],
    }
