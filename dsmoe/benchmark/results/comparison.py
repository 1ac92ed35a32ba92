"""Measured rows beside the published reference; neither ever stands in for the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Sequence

from dsmoe.benchmark.cases.case import METHODS
from dsmoe.benchmark.cases.suites import MODELS
from dsmoe.benchmark.results.record import PAPER_EXPERIMENT, PAPER_MODEL
from dsmoe.benchmark.results.rows import Row, read_rows, row_of
from dsmoe.benchmark.results.store import RECORDS, ROWS, read_records
from dsmoe.common.errors import ResultsError
from dsmoe.common.tables import columns

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
class MeasuredSide:
    """The best of the ``runs`` rows of one method on one number of GPUs.

    ``tflops`` per GPU, or None with a ``word`` that says why. ``model``: the named size nearest to
    the row's parameters.
    """

    tflops: float | None = None
    word: str = NOT_MEASURED
    model: str = "-"
    instance: str = "-"
    runs: int = 0


@dataclass(frozen=True)
class Point:
    """One number of GPUs: the reference, and what was measured by each method.

    ``model``: what the reference trained (``-`` where it has no point).
    """

    gpus: int
    model: str
    reference: float | None
    reference_word: str
    published: MeasuredSide
    dsmoe: MeasuredSide

    def same_model(self, measured: MeasuredSide) -> bool:
        """Whether ``measured`` is of the model that the reference trained."""
        return self.model == measured.model

    @property
    def ratio(self) -> float | None:
        """dsmoe over the published method, both measured here, with the same model and GPU."""
        ours, theirs = self.dsmoe, self.published
        same = (ours.model, ours.instance) == (theirs.model, theirs.instance)
        if ours.tflops is None or theirs.tflops is None or not same:
            return None
        return ours.tflops / theirs.tflops


def load_reference() -> Reference:
    """The project's data file."""
    data = json.loads(REFERENCE.read_text(encoding="utf-8"))
    points = data.pop("points")
    return Reference(
        **data,
        models={point["gpus"]: point["model"] for point in points},
        tflops={point["gpus"]: point["tflops"] for point in points},
    )


def load_rows(paths: Sequence[Path], say: Callable[[str], object] = lambda line: None) -> list[Row]:
    """The rows of result folders, ``.tsv`` and ``.jsonl`` files. Raises ResultsError.

    ``say`` gets a line about each row that was read as something else than it says.

    Of a folder the records are read where it has some: those of an earlier version have the method
    of the published baseline in their rows, and a record says which one it was.
    """
    rows: list[Row] = []
    for path in paths:
        if path.is_dir() and (path / RECORDS).is_file():
            rows += map(row_of, read_records(path / RECORDS))
        elif path.is_dir():
            rows += read_rows(path / ROWS, say)
        elif path.suffix == ".jsonl":
            rows += map(row_of, read_records(path))
        else:
            rows += read_rows(path, say)
    if not rows:
        raise ResultsError(
            f"{', '.join(map(str, paths))}: no row; expected at least one, which dsmoe run "
            "--output FOLDER writes"
        )
    return rows


def records_file(path: Path) -> Path:
    """The record file of a results folder, or the file itself. Raises ResultsError."""
    return path / RECORDS if path.is_dir() else path


def compare(rows: Iterable[Row], reference: Reference) -> list[Point]:
    """A point for every number of GPUs that the reference or a GPU run of the paper's cases has.

    Of several good rows of one number and method the best counts, as in the artifact's plot, those
    of the reference's model first. CPU runs and other suites have other names and are left out.
    """
    drawn: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if (row.exp_name, row.model_name) == (PAPER_EXPERIMENT, PAPER_MODEL):
            drawn.setdefault((row.num_devices, row.method), []).append(row)
    numbers = sorted(set(reference.tflops) | {gpus for gpus, _ in drawn})
    return [_point(gpus, drawn, reference) for gpus in numbers]


def _point(gpus: int, drawn: dict[tuple[int, str], list[Row]], reference: Reference) -> Point:
    value = reference.tflops.get(gpus)
    model = reference.models.get(gpus, "-")
    measured = {
        name: _measured(drawn.get((gpus, method), []), model) for name, method in METHODS.items()
    }
    return Point(
        gpus,
        model,
        value if value is not None and value > 0 else None,
        "" if value and value > 0 else OUT_OF_MEMORY if value else "no reference",
        **measured,
    )


def _measured(rows: list[Row], model: str) -> MeasuredSide:
    best = max(rows, key=lambda row: _rank(row, model), default=None)
    if best is None:
        return MeasuredSide()
    good = best.value["tflops"] > 0
    return MeasuredSide(
        best.value["tflops"] if good else None,
        "" if good else failure_word(best),
        model_of(best),
        best.instance,
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
            return str(name)
    return f"{billions:.3g}B"


def table_lines(points: Sequence[Point], reference: Reference) -> list[str]:
    """The comparison as plain ASCII lines of at most 80 columns, for usual names of GPUs."""
    head = ("GPUs", "model", f"reference ({reference.hardware})", "published", "dsmoe", "ratio")
    lines = [
        (
            str(point.gpus),
            point.model,
            point.reference_word if point.reference is None else f"{point.reference:.2f}",
            _cell(point, point.published),
            _cell(point, point.dsmoe),
            "-" if point.ratio is None else f"{point.ratio:.2f}",
        )
        for point in points
    ]
    hardware = sorted({m.instance for p in points for m in (p.published, p.dsmoe) if m.runs})
    measured_on = f"measured on {', '.join(hardware)}" if hardware else "nothing was measured"
    return [*columns([head, *lines]), f"published, dsmoe: {measured_on}; ratio: of these two"]


def _cell(point: Point, measured: MeasuredSide) -> str:
    text = measured.word if measured.tflops is None else f"{measured.tflops:.2f}"
    if measured.runs and not point.same_model(measured):
        text += f" ({measured.model})"
    return text
