"""The figures, drawn with matplotlib to PNG and PDF."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Sequence

from dsmoe.benchmark.results.comparison import Point, Reference
from dsmoe.common.errors import ResultsError
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.common.errors import EnvironmentProblem

# Apart for colour-blind readers too: the reference is light and hatched, the measured one dark.
REFERENCE_STYLE = {"color": "#c9c9c9", "edgecolor": "#6b6b6b", "hatch": "///"}
MEASURED_STYLE = {"color": "#1b6ca8", "edgecolor": "#0b3556"}
OTHER_MODEL_STYLE = {"color": "#f0b24a", "edgecolor": "#7a5200"}
WIDTH = 0.38


def pyplot() -> Any:
    """matplotlib's pyplot, without a display. Raises EnvironmentProblem where it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise EnvironmentProblem(
            f"drawing needs the package matplotlib ({error}); run: pip install matplotlib"
        ) from error
    matplotlib.use("Agg")
    # Text stays text in the PDF, and the same input gives the same files.
    matplotlib.rcParams.update({"pdf.fonttype": 42, "hatch.linewidth": 0.6, "font.size": 9})
    from matplotlib import pyplot as plt

    return plt


def draw_comparison(points: Sequence[Point], reference: Reference) -> Any:
    """TFLOPS per GPU against the number of GPUs: a pair of bars a point, a word for a gap."""
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(8.4, 4.2))
    top = max(_values(points), default=1.0)
    seen: set[str] = set()
    for place, point in enumerate(points):
        if point.reference is not None:
            name = f"reference: published with the artifact, {reference.hardware}"
            _bar(ax, place - WIDTH / 2, point.reference, REFERENCE_STYLE, name, seen)
        else:
            _word(ax, place - WIDTH / 2, f"reference: {point.reference_word}", "#6b6b6b", top)
        if point.measured is None:
            word = f"here: {point.measured_word}" if point.runs else point.measured_word
            _word(ax, place + WIDTH / 2, word, "#0b3556", top)
        elif point.same_model:
            name = "measured: this project"
            _bar(ax, place + WIDTH / 2, point.measured, MEASURED_STYLE, name, seen)
        else:
            name = "measured: this project, another model than the reference's"
            _bar(ax, place + WIDTH / 2, point.measured, OTHER_MODEL_STYLE, name, seen)
    ax.set_xticks(range(len(points)), [_tick(point) for point in points])
    ax.set_xlabel("GPUs, and the parameters of the model")
    ax.set_ylabel("TFLOPS per GPU (artifact's formula)")
    hardware = sorted({point.instance for point in points if point.measured is not None})
    ax.set_title(
        "DeepSpeed on MoE: " + (f"measured on {', '.join(hardware)}" if hardware else "no GPU run")
    )
    ax.set_ylim(0, 1.18 * top)
    ax.set_xlim(-0.7, len(points) - 0.3)
    if seen:
        ax.legend(loc="upper right", frameon=False)
    plain_axes(ax)
    fig.tight_layout()
    return fig


def draw_cpu(records: Sequence[RunRecord]) -> Any:
    """Tokens a second of CPU runs against the number of processes; no TFLOPS, no reference."""
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(6.4, 3.8))
    best: dict[tuple[str, int], RunRecord] = {}
    for record in records:
        key = (_case_name(record), record.num_devices_per_host * record.num_hosts)
        if key not in best or _speed(record) > _speed(best[key]):
            best[key] = record
    names = sorted(best)
    for place, record in enumerate(best[name] for name in names):
        speed = record.tokens_per_second
        if speed is None:
            _word(ax, place, "failed", "#0b3556", 1)
            continue
        ax.bar(place, speed, 0.6, color="#4f8a5b", edgecolor="#234a2c")
        ax.annotate(f"{speed:,.0f}", (place, speed), ha="center", va="bottom")
    ax.set_xticks(range(len(names)), [f"{name}\n{count} processes" for name, count in names])
    ax.set_xlim(-0.7, len(best) - 0.3)
    ax.set_ylabel("tokens/s, all processes")
    ax.set_title("CPU runs (not comparable with the paper's figure)")
    ax.margins(y=0.15)
    plain_axes(ax)
    fig.tight_layout()
    return fig


def save(fig: Any, output: Path) -> list[Path]:
    """Write ``output`` as PNG and as PDF, each whole or not at all. Raises ResultsError."""
    stem = output.with_suffix("") if output.suffix in (".png", ".pdf") else output
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".pdf")]
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
            # No time of making: the same results give the same bytes.
            dates = {"CreationDate": None} if path.suffix == ".pdf" else {}
            fig.savefig(beside, dpi=160, metadata=dates)
            beside.replace(path)
    except OSError as error:
        raise ResultsError(
            f"{error.filename or stem}: the figure was not written: {error.strerror}"
        ) from error
    return paths


def _bar(
    ax: Any, place: float, height: float, style: dict[str, Any], name: str, seen: set[str]
) -> None:
    ax.bar(place, height, WIDTH, label=None if name in seen else name, **style)
    seen.add(name)
    ax.annotate(f"{height:.1f}", (place, height), ha="center", va="bottom", fontsize=8)


def _word(ax: Any, place: float, word: str, color: str, top: float) -> None:
    ax.text(place, 0.02 * top, word, rotation=90, ha="center", va="bottom", color=color, fontsize=8)


def _tick(point: Point) -> str:
    other = point.runs and not point.same_model
    return f"{point.gpus}\n{point.model}" + (f"\n(here {point.measured_model})" if other else "")


def _values(points: Sequence[Point]) -> list[float]:
    pairs = [(point.reference, point.measured) for point in points]
    return [value for pair in pairs for value in pair if value is not None]


def _case_name(record: RunRecord) -> str:
    return str(record.case.get("model", {}).get("name", record.model_name))


def _speed(record: RunRecord) -> float:
    return record.tokens_per_second or -1.0


def plain_axes(ax: Any) -> None:
    """No frame at the top and right, light lines across."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(axis="y", linewidth=0.4, alpha=0.5)
    ax.set_axisbelow(True)
