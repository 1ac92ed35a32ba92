"""Measured rows beside the published reference; neither ever stands in for the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Sequence

from dsmoe.common.errors import ResultsError
from dsmoe.benchmark.results.record import METHOD, PAPER_EXPERIMENT, PAPER_MODEL
from dsmoe.benchmark.results.store import RECORDS, ROWS, read_records
from dsmoe.benchmark.results.rows import Row, read_rows, row_of
from dsmoe.benchmark.cases.suites import MODELS

REFERENCE = Path(__file__).with_name("reference.json")
NAME_TOLERANCE = 0.05
OUT_OF_MEMORY = "out of memory"
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Reference:
    """The published points: ``models`` and ``tflops`` by number of GPUs, -1 for out of memory."""

    what: str
    source: str
    provenance: str
    hardware: str
    models: dict[int, str]
    tflops: dict[int, float]


@dataclass(frozen=True)
class Point:
    """One number of GPUs. A figure is TFLOPS per GPU, or None with a word that says why.

    ``model``: what the reference trained (``-`` where it has no point); ``measured_model``: the
    named size nearest to the measured row's parameters. ``runs``: measured rows, failed included.
    """

    gpus: int
    model: str
    reference: float | None
    reference_word: str
    measured: float | None
    measured_word: str
    measured_model: str
    instance: str
    runs: int

    @property
    def same_model(self) -> bool:
        return self.model == self.measured_model

    @property
    def ratio(self) -> float | None:
        """Measured over reference, where both are of the same model."""
        if self.measured is None or self.reference is None or not self.same_model:
            return None
        return self.measured / self.reference


def load_reference() -> Reference:
    """The project's data file."""
    data = json.loads(REFERENCE.read_text(encoding="utf-8"))
    points = data.pop("points")
    return Reference(
        **data,
        models={point["gpus"]: point["model"] for point in points},
        tflops={point["gpus"]: point["tflops"] for point in points},
    )


def load_rows(paths: Sequence[Path]) -> list[Row]:
    """The rows of result folders, ``.tsv`` and ``.jsonl`` files. Raises ResultsError."""
    rows: list[Row] = []
    for path in paths:
        if path.is_dir():
            rows += read_rows(path / ROWS)
        elif path.suffix == ".jsonl":
            rows += map(row_of, read_records(path))
        else:
            rows += read_rows(path)
    return rows


def records_file(path: Path) -> Path:
    """The record file of a results folder, or the file itself. Raises ResultsError."""
    found = path / RECORDS if path.is_dir() else path
    if not found.is_file():
        raise ResultsError(f"{found}: no such file; expected the records of a results folder")
    return found


def compare(rows: Iterable[Row], reference: Reference) -> list[Point]:
    """A point for every number of GPUs that the reference or a GPU run of the paper's cases has.

    Of several good rows of one number the best counts, as in the artifact's plot, those of the
    reference's model first. CPU runs and other suites have other names and are left out.
    """
    drawn: dict[int, list[Row]] = {}
    for row in rows:
        if (row.exp_name, row.model_name, row.method) == (PAPER_EXPERIMENT, PAPER_MODEL, METHOD):
            drawn.setdefault(row.num_devices, []).append(row)
    numbers = sorted(set(reference.tflops) | set(drawn))
    return [_point(gpus, drawn.get(gpus, []), reference) for gpus in numbers]


def _point(gpus: int, rows: list[Row], reference: Reference) -> Point:
    published = reference.tflops.get(gpus)
    model = reference.models.get(gpus, "-")
    best = max(rows, key=lambda row: _rank(row, model), default=None)
    measured, word = None, NOT_MEASURED
    if best is not None and best.value["tflops"] > 0:
        measured, word = best.value["tflops"], ""
    elif best is not None:
        word = failure_word(best)
    return Point(
        gpus,
        model,
        published if published is not None and published > 0 else None,
        "" if published and published > 0 else OUT_OF_MEMORY if published else "no reference",
        measured,
        word,
        model_of(best) if best is not None else "-",
        best.instance if best is not None else "-",
        len(rows),
    )


def _rank(row: Row, model: str) -> tuple[bool, bool, float]:
    return row.value["tflops"] > 0, model_of(row) == model, row.value["tflops"]


def failure_word(row: Row) -> str:
    """What a row with -1 is called; the artifact's own rows give no reason: out of memory."""
    reason = str(row.value.get("reason", OUT_OF_MEMORY))
    return OUT_OF_MEMORY if OUT_OF_MEMORY in reason else "failed"


def model_of(row: Row) -> str:
    """The named size whose parameters are within 5 % of the row's, else the count in billions."""
    billions = row.value.get("parameter_count", row.value.get("param_count"))
    if not isinstance(billions, (int, float)) or billions <= 0:
        return "?"
    for name, model in MODELS.items():
        if abs(model.parameter_count / 1e9 / billions - 1) < NAME_TOLERANCE:
            return name
    return f"{billions:.3g}B"


def table_lines(points: Sequence[Point], reference: Reference) -> list[str]:
    """The comparison as plain ASCII lines."""
    head = ("GPUs", "model", f"reference ({reference.hardware})", "measured", "ratio", "on", "runs")
    lines = [head]
    for point in points:
        measured = point.measured_word if point.measured is None else f"{point.measured:.2f}"
        if point.runs and not point.same_model:
            measured += f" ({point.measured_model})"
        lines.append(
            (
                str(point.gpus),
                point.model,
                point.reference_word if point.reference is None else f"{point.reference:.2f}",
                measured,
                "-" if point.ratio is None else f"{point.ratio:.2f}",
                point.instance,
                str(point.runs),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines
    ]
