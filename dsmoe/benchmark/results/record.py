"""One run as data: the record that results_e2e.jsonl keeps, checked when made and when read."""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Callable, Sequence

from dsmoe.benchmark.cases.case import METHODS, PAPER_SUITES, Case, complete
from dsmoe.benchmark.cases.flops import tflops
from dsmoe.benchmark.results import foreign
from dsmoe.common.errors import ResultsError

SCHEMA = 2
PAPER_EXPERIMENT = "e2e"
PAPER_MODEL = "moe"
REASON_LENGTH = 500


@dataclass(frozen=True)
class RunRecord:
    """A finished or failed run. Seconds, bytes, tokens and counts are plain numbers.

    The first eight fields after ``schema`` and ``status`` are the columns of the artifact's row
    (value apart). Raises :class:`ResultsError` for a field of the wrong kind and for figures
    that contradict each other.
    """

    exp_name: str
    instance: str
    num_hosts: int
    num_devices_per_host: int
    model_name: str
    parameter_count: int
    # cases.Case.to_dict(): model, batch, parallelism, precision, remat, gate, seed.
    case: dict[str, Any]
    # "cpu" or "cuda", and what the machine says of itself: device names, memory, driver.
    device: str
    hardware: dict[str, Any]
    # Package name -> version: python, torch, cuda, deepspeed, dsmoe.
    versions: dict[str, str]
    # Tree ids of the pinned DeepSpeed and of the patched one: folder -> id.
    base_tree: dict[str, str] = field(default_factory=dict)
    result_tree: dict[str, str] = field(default_factory=dict)
    method: str = "dsmoe"
    time_stamp: float = field(default_factory=time.time)
    schema: int = SCHEMA
    # "ok" or "failed"; a failed run has a reason and no figures.
    status: str = "ok"
    reason: str | None = None
    # The configuration that deepspeed.initialize was given, whole.
    deepspeed_config: dict[str, Any] = field(default_factory=dict)
    # The run's own files, below the results folder: log, iterations, configuration.
    run_folder: str = ""
    # corpus.CorpusInfo as a dictionary.
    data: dict[str, Any] = field(default_factory=dict)
    # Each step's seconds: those before measuring, and the measured ones.
    warmup_seconds: list[float] = field(default_factory=list)
    # From the launcher's start to the end of the first iteration, compilation included.
    first_step_seconds: float | None = None
    step_seconds: list[float] = field(default_factory=list)
    # Of step_seconds: the median, and (largest - smallest) / median.
    median_seconds: float | None = None
    spread: float | None = None
    # Over all devices: global batch x sequence / median_seconds.
    tokens_per_second: float | None = None
    # Formula's name (flops.FORMULAS) -> TFLOP a second and device, at the median.
    tflops: dict[str, float] = field(default_factory=dict)
    # What computed the products with GELU and attention's gradient, and what exchanged the tokens
    # of shared-out experts; {} where nothing was compiled.
    kernels: dict[str, str] = field(default_factory=dict)
    # With --link: its name, and the bytes that every host (the outer list) sent and received over
    # its interface in each measured iteration.
    link: dict[str, Any] = field(default_factory=dict)
    # What was predicted for this run (predict/time.py, Prediction.to_dict); {} without rates.
    predicted: dict[str, Any] = field(default_factory=dict)
    # What all devices took in the measured iterations, by NVML's counter (train/energy.py), and the
    # same for each token of them; None on the CPU and where the driver does not count it.
    energy_joules: float | None = None
    joules_per_token: float | None = None
    # The largest of any device, as the allocator counts it.
    peak_memory_bytes: int | None = None
    # Steps whose gradients overflowed, for which the dynamic loss scale was lowered instead.
    skipped_steps: int | None = None
    # Mean training loss of each step, warm-up included; null where it was not finite.
    losses: list[float | None] = field(default_factory=list)
    held_out_loss: float | None = None
    # Why a run whose iterations finished did not end well: what was to be taken after them failed.
    evaluation_error: str | None = None
    # For each mixture layer: each expert's share of the routed tokens (sums to 1), last step.
    expert_load: list[list[float]] = field(default_factory=list)
    # For each mixture layer: the share of choices that found their expert full, last micro-batch;
    # null where the layer does not say (DeepSpeed's own).
    dropped_share: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        check(self)

    def to_json(self) -> str:
        """One line of JSON without NaN, infinity or halves of characters."""
        values = asdict(self)
        text = json.dumps(values, ensure_ascii=False)
        if not foreign.whole_characters(text):  # of a file's name that is no text
            values = json.loads(text.encode("utf-8", "replace"))
        return json.dumps(values, allow_nan=False, separators=(",", ":"))

    @staticmethod
    def from_json(line: str) -> RunRecord:
        """The record of one line. Raises :class:`ResultsError` that says what is wrong."""
        values = foreign.parse(line)
        if not isinstance(values, dict):
            raise ResultsError(f"a JSON {type(values).__name__}, expected a record")
        if values.get("schema") == 1 and isinstance(values.get("case"), dict):
            # until then every run had the published baseline's name
            values.update(schema=SCHEMA, case=complete(values["case"]), method="dsmoe")
        if values.get("schema") != SCHEMA:
            raise ResultsError(
                f"schema {values.get('schema')!r}, this version reads 1 and {SCHEMA}"
            )
        known = {item.name for item in fields(RunRecord)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ResultsError(f"unknown fields: {', '.join(unknown)}")
        missing = [
            item.name
            for item in fields(RunRecord)
            if item.default is MISSING and item.default_factory is MISSING
            if item.name not in values
        ]
        if missing:
            raise ResultsError(f"fields are missing: {', '.join(missing)}")
        return RunRecord(**values)


def labels(case: Case, device: str, instance: str) -> dict[str, str]:
    """exp_name, instance, model_name and method of a run of ``case``.

    Only the suites of the paper on GPUs get the names (e2e, moe) that the artifact's plot
    draws. A CPU run is ``smoke-cpu``, ``cpu``, ``moe-smoke`` whatever its case.
    """
    if device == "cpu":
        names = {"exp_name": "smoke-cpu", "instance": "cpu", "model_name": "moe-smoke"}
        return {**names, "method": METHODS[case.method]}
    if case.suite in PAPER_SUITES:
        names = {"exp_name": PAPER_EXPERIMENT, "model_name": PAPER_MODEL}
    else:
        names = {"exp_name": f"{case.suite}-gpu", "model_name": f"{PAPER_MODEL}-{case.suite}"}
    return {**names, "instance": instance, "method": METHODS[case.method]}


def finite_or_none(values: Sequence[float]) -> list[float | None]:
    """``values`` with None in place of NaN and infinities, as records keep losses."""
    return [float(value) if math.isfinite(value) else None for value in values]


def measured(case: Case, step_seconds: Sequence[float]) -> dict[str, Any]:
    """The figures of a finished run, from its measured steps: keyword arguments of RunRecord."""
    if not step_seconds or not all(math.isfinite(s) and s > 0 for s in step_seconds):
        raise ResultsError(f"step times {list(step_seconds)!r}: expected at least one, all > 0")
    median = statistics.median(step_seconds)
    return {
        "case": case.to_dict(),
        "step_seconds": [float(seconds) for seconds in step_seconds],
        "median_seconds": median,
        "spread": (max(step_seconds) - min(step_seconds)) / median,
        "tokens_per_second": case.tokens_per_step / median,
        "tflops": tflops(case, median),
    }


def energy(case: Case, iterations: int, joules: float | None) -> dict[str, float | None]:
    """The energy of the measured iterations and of a token: keyword arguments of RunRecord."""
    each = None if joules is None else joules / (iterations * case.tokens_per_step)
    return {"energy_joules": joules, "joules_per_token": each}


def failed(case: Case, reason: str) -> dict[str, Any]:
    """What a failed run has instead: keyword arguments of RunRecord. ``reason`` becomes a line."""
    line = " ".join(reason.split())[:REASON_LENGTH] or "no reason was given"
    return {"case": case.to_dict(), "status": "failed", "reason": line}


_number = foreign.is_number


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_number(item) for item in value)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "str": lambda v: isinstance(v, str),
    "int": _count,
    "float": _number,
    "str | None": lambda v: v is None or isinstance(v, str),
    "int | None": lambda v: v is None or _count(v),
    "float | None": lambda v: v is None or _number(v),
    "dict[str, Any]": lambda v: isinstance(v, dict),
    "dict[str, str]": lambda v: isinstance(v, dict) and all(isinstance(i, str) for i in v.values()),
    "dict[str, float]": lambda v: isinstance(v, dict) and _numbers(list(v.values())),
    "list[float]": _numbers,
    "list[float | None]": lambda v: (
        isinstance(v, list) and _numbers([i for i in v if i is not None])
    ),
    "list[list[float]]": lambda v: isinstance(v, list) and all(_numbers(i) for i in v),
}


def check(record: RunRecord) -> None:
    """Raises :class:`ResultsError` unless every field has its kind and the figures agree."""
    for item in fields(record):
        value = getattr(record, item.name)
        if not _KINDS[str(item.type)](value):
            raise ResultsError(f"{item.name} is {value!r:.60}, expected {item.type}")
    for name in ("exp_name", "instance", "model_name", "method"):
        text = getattr(record, name)
        if not text or text.startswith("#") or text != text.strip() or not text.isprintable():
            raise ResultsError(f"{name} is {text!r}, expected a plain name")
    for name in ("num_hosts", "num_devices_per_host", "parameter_count"):
        if getattr(record, name) < 1:
            raise ResultsError(f"{name} is {getattr(record, name)}, expected at least 1")
    if not foreign.is_time(record.time_stamp):
        raise ResultsError(f"time_stamp is {record.time_stamp:g}, expected seconds since 1970")
    seconds = record.predicted.get("seconds", 1.0)
    if not (_number(seconds) and seconds > 0):
        raise ResultsError(f"predicted: seconds is {seconds!r:.60}, expected a number above 0")
    for name, figure in (("tokens_per_second", record.tokens_per_second), *record.tflops.items()):
        if not 0 <= (figure or 0) <= foreign.LARGEST_FIGURE:
            raise ResultsError(
                f"{name} is {figure:g}, expected 0 to at most {foreign.LARGEST_FIGURE:g}"
            )
    _check_case(record.case)
    _check_names(record)
    if record.status == "failed":
        good = 0 < len(record.reason or "") <= REASON_LENGTH
        good = good and record.median_seconds is None and not record.tflops
    else:
        good = record.status == "ok" and record.reason is None and _figures_agree(record)
    if not good:
        raise ResultsError(
            f"status {record.status!r} does not fit: a run is ok with step times and figures that "
            "agree and no reason, or failed with a reason and no figures"
        )


def _check_case(case: dict[str, Any]) -> None:
    """The parts of a case that tables and figures show."""
    model, parallel = case.get("model"), case.get("parallel")
    if not (isinstance(model, dict) and isinstance(model.get("name"), str)):
        raise ResultsError("case has no model with a name")
    if not (isinstance(parallel, dict) and isinstance(case.get("suite"), str)):
        raise ResultsError("case has no suite or no parallel")
    stages = parallel.get("pipeline_parallel_size", 1)  # earlier records had none
    counts = [case.get("micro_batches"), case.get("global_batch_size")]
    counts += [parallel.get("processes"), stages]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in counts):
        raise ResultsError(
            "case: processes, pipeline_parallel_size, micro_batches or global_batch_size is not"
            " a count"
        )


def _check_names(record: RunRecord) -> None:
    """A row that the artifact's plot draws must be a case of the paper, run on its GPUs."""
    names = f"{record.exp_name} {record.instance} {record.model_name}"
    drawn = record.exp_name == PAPER_EXPERIMENT or record.model_name == PAPER_MODEL
    if record.device == "cpu" and (drawn or record.instance != "cpu"):
        raise ResultsError(
            f"a CPU run is named {names}, like a case of the paper; expected smoke-cpu cpu "
            "moe-smoke (record.labels)"
        )
    suite = record.case.get("suite")
    if drawn and suite not in PAPER_SUITES:
        raise ResultsError(
            f"a run of suite {suite!r} is named {names}; only {' and '.join(PAPER_SUITES)} are "
            "(record.labels)"
        )
    devices = record.num_hosts * record.num_devices_per_host
    processes = record.case["parallel"]["processes"]
    if processes != devices:
        raise ResultsError(
            f"{record.num_hosts} hosts with {record.num_devices_per_host} devices are {devices}, "
            f"but the case has {processes} processes"
        )


def _figures_agree(record: RunRecord) -> bool:
    if not record.step_seconds or record.median_seconds is None or record.spread is None:
        return False
    median = statistics.median(record.step_seconds)
    spread = (max(record.step_seconds) - min(record.step_seconds)) / median if median > 0 else -1.0
    return (
        median > 0
        and math.isclose(median, record.median_seconds, rel_tol=1e-9)
        and math.isclose(spread, record.spread, rel_tol=1e-9, abs_tol=1e-12)
        and record.tokens_per_second is not None
        and {"artifact", "useful"} <= set(record.tflops)
        and _energy_agrees(record, median * record.tokens_per_second)
    )


def _energy_agrees(record: RunRecord, tokens_per_step: float) -> bool:
    joules, each = record.energy_joules, record.joules_per_token
    if joules is None or each is None:
        return joules is each
    tokens = len(record.step_seconds) * tokens_per_step
    return joules > 0 and math.isclose(each * tokens, joules, rel_tol=1e-9)
