"""The figures, drawn with matplotlib to PNG and PDF."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Sequence

from dsmoe.benchmark.results.comparison import Point, Reference
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.texts import difference, text_names
from dsmoe.common.errors import EnvironmentProblem, ResultsError
from dsmoe.common.files import write_output

# Apart for colour-blind readers too: the reference is light and hatched, the measured one dark.
REFERENCE_STYLE = {"color": "#c9c9c9", "edgecolor": "#6b6b6b", "hatch": "///"}
PUBLISHED_STYLE = {"color": "#f0b24a", "edgecolor": "#7a5200"}
DSMOE_STYLE = {"color": "#1b6ca8", "edgecolor": "#0b3556"}
WIDTH = 0.29


def pyplot() -> Any:
    """matplotlib's pyplot, without a display. Raises EnvironmentProblem where it is missing."""
    # At a backend that it lacks, or a date that is no date, matplotlib ends in a ValueError. The
    # figures show no window and hold no date.
    os.environ["MPLBACKEND"] = "Agg"
    os.environ.pop("SOURCE_DATE_EPOCH", None)
    try:
        import matplotlib
    except ImportError as error:
        raise EnvironmentProblem(
            f"drawing needs the package matplotlib ({error}); run: pip install matplotlib"
        ) from error
    matplotlib.use("Agg")
    # Text stays text in the PDF, and the same input gives the same files.
    matplotlib.rcParams.update({"pdf.fonttype": 42, "hatch.linewidth": 0.6, "font.size": 9})
    # A name from a result file is text; between two dollars it would be a formula.
    matplotlib.rcParams["text.parse_math"] = False
    from matplotlib import pyplot as plt

    return plt


def draw_comparison(points: Sequence[Point], reference: Reference) -> Any:
    """TFLOPS per GPU against the number of GPUs: three bars a point, a word for a gap.

    The reference as it was published, the published method measured here, and dsmoe.
    """
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(8.4, 4.2))
    top = max(_values(points), default=1.0)
    seen: set[str] = set()
    for place, point in enumerate(points):
        if point.reference is not None:
            name = f"reference: published with the artifact, {reference.hardware}"
            _bar(ax, place - WIDTH, point.reference, REFERENCE_STYLE, name, seen)
        else:
            _word(ax, place - WIDTH, f"reference: {point.reference_word}", "#6b6b6b", top)
        for at, measured, words, style in (
            (place, point.published, "published method, measured here", PUBLISHED_STYLE),
            (place + WIDTH, point.dsmoe, "dsmoe, measured here", DSMOE_STYLE),
        ):
            if measured.tflops is None:
                _word(ax, at, f"{words.split(',')[0]}: {measured.word}", "#0b3556", top)
            elif point.same_model(measured):
                _bar(ax, at, measured.tflops, style, words, seen)
            else:
                other = {**style, "hatch": "..."}
                name = f"{words}, another model than the reference's"
                _bar(ax, at, measured.tflops, other, name, seen)
    ax.set_xticks(range(len(points)), [_tick(point) for point in points])
    ax.set_xlabel("GPUs, and the parameters of the model")
    ax.set_ylabel("TFLOPS per GPU (artifact's formula)")
    ran = [m for point in points for m in (point.published, point.dsmoe)]
    hardware = sorted({measured.instance for measured in ran if measured.tflops is not None})
    ax.set_title(
        "DeepSpeed on MoE: " + (f"measured on {', '.join(hardware)}" if hardware else "no GPU run")
    )
    ax.set_ylim(0, 1.18 * top)
    ax.set_xlim(-0.7, len(points) - 0.3)
    if seen:
        ax.legend(loc="upper right", frameon=False)
    plain(ax)
    fig.tight_layout()
    return fig


def draw_cpu(records: Sequence[RunRecord]) -> Any:
    """Tokens a second of CPU runs against the number of processes; no TFLOPS, no reference.

    Runs on different text have bars of their own, and the figure says so.
    """
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(6.4, 3.8))
    best: dict[tuple[str, int, str], RunRecord] = {}
    texts = text_names(records)
    for record, text in zip(records, texts):
        key = (_case_name(record), record.num_devices_per_host * record.num_hosts, text)
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
    note = difference(texts)
    ticks = [
        f"{name}\n{count} processes" + (f"\ntext {text}" if note else "")
        for name, count, text in names
    ]
    ax.set_xticks(range(len(names)), ticks)
    ax.set_xlim(-0.7, len(best) - 0.3)
    ax.set_ylabel("tokens/s, all processes")
    ax.set_title("CPU runs (not comparable with the paper's figure)")
    if note:
        ax.set_xlabel(f"different texts: {note}")
    ax.margins(y=0.15)
    plain(ax)
    fig.tight_layout()
    return fig


def save(fig: Any, output: Path) -> list[Path]:
    """Write ``output`` as PNG and as PDF, each whole or not at all. Raises ResultsError."""
    stem = output.with_suffix("") if output.suffix in (".png", ".pdf") else output
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".pdf")]
    try:
        for path in paths:
            # No time of making: the same results give the same bytes.
            dates = {"CreationDate": None} if path.suffix == ".pdf" else {}
            drawn = io.BytesIO()
            fig.savefig(drawn, format=path.suffix[1:], dpi=160, metadata=dates)
            write_output(path, drawn.getvalue())
    except OSError as error:
        raise ResultsError(
            f"{error.filename or stem}: the figure was not written: {error.strerror}; name another "
            "place with --output"
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
    others = {m.model for m in (point.published, point.dsmoe) if m.runs} - {point.model}
    return f"{point.gpus}\n{point.model}" + "".join(f"\n(here {name})" for name in sorted(others))


def _values(points: Sequence[Point]) -> list[float]:
    values = [v for p in points for v in (p.reference, p.published.tflops, p.dsmoe.tflops)]
    return [value for value in values if value is not None]


def _case_name(record: RunRecord) -> str:
    return str(record.case.get("model", {}).get("name", record.model_name))


def _speed(record: RunRecord) -> float:
    return record.tokens_per_second or -1.0


def plain(ax: Any) -> None:
    """Without the upper and right side of the frame, with faint lines at the values."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(axis="y", linewidth=0.4, alpha=0.5)
    ax.set_axisbelow(True)
