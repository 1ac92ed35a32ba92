"""The paper's figure with what is predicted: points are published or measured, lines predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Sequence

from dsmoe.benchmark.predict.paper import Predicted
from dsmoe.benchmark.results.comparison import Point, Reference
from dsmoe.benchmark.results.figure import plain, pyplot
from dsmoe.common.tables import columns

ALPA = Path(__file__).with_name("alpa.json")
#: Field of Predicted -> its name in the legend, its column's, and its line.
CURVES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (
        "published",
        "predicted: the published settings",
        "published",
        {"color": "#a06a00", "linestyle": "--"},
    ),
    (
        "once",
        "predicted: the same, gradients reduced once",
        "once",
        {"color": "#a06a00", "linestyle": ":"},
    ),
    (
        "pipeline",
        "predicted: the same, a pipeline over the hosts",
        "pipeline",
        {"color": "#a06a00", "linestyle": "-."},
    ),
    (
        "dsmoe",
        "predicted: dsmoe, gradients reduced once",
        "dsmoe",
        {"color": "#1b6ca8", "linestyle": ":"},
    ),
    (
        "dsmoe_pipeline",
        "predicted: dsmoe, a pipeline over the hosts",
        "dsmoe pipeline",
        {"color": "#1b6ca8", "linestyle": "-."},
    ),
)


def load_alpa() -> dict[int, float]:
    """Alpa's published points: GPUs -> TFLOPS a GPU."""
    points = json.loads(ALPA.read_text(encoding="utf-8"))["points"]
    return {point["gpus"]: float(point["tflops"]) for point in points}


def draw_predicted(
    predicted: Sequence[Predicted], reference: Reference, measured: Sequence[Point], cluster: str
) -> Any:
    """TFLOPS a GPU: published and measured points as marks, predictions as broken lines."""
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(8.4, 4.8))
    places = {point.gpus: at for at, point in enumerate(predicted)}
    for field, name, _, style in CURVES:
        line = [point.tflops(vars(point)[field]) for point in predicted]
        ax.plot(range(len(line)), line, label=name, linewidth=1.4, **style)
    good = {gpus: value for gpus, value in reference.tflops.items() if value > 0}
    for values, name, marker, color in (
        (good, "published: DeepSpeed", "s", "#6b6b6b"),
        (load_alpa(), "published: Alpa", "^", "#5a8a3a"),
        (_measured(measured, "published"), "measured here: published method", "D", "#f0b24a"),
        (_measured(measured, "dsmoe"), "measured here: dsmoe", "o", "#1b6ca8"),
    ):
        drawn = [(places[gpus], value) for gpus, value in values.items() if gpus in places]
        if drawn:
            x, y = zip(*drawn)
            ax.plot(x, y, marker, color=color, label=name, markersize=7)
    lost = [gpus for gpus, value in reference.tflops.items() if value <= 0 and gpus in places]
    for gpus in lost:
        at = (places[gpus] - 0.03, 8)
        ax.annotate("DeepSpeed:\nout of memory", at, ha="right", color="#6b6b6b", fontsize=8)
    ax.set_xticks(range(len(predicted)), [f"{point.gpus}\n{point.model}" for point in predicted])
    ax.set_xlabel("GPUs, and the parameters of the model")
    ax.set_ylabel("TFLOPS per GPU (artifact's formula,\npublished settings)")
    ax.set_title(f"MoE training on {cluster}: published points, predicted lines")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=7, ncol=2)
    plain(ax)
    fig.tight_layout()
    return fig


def _measured(points: Sequence[Point], field: str) -> dict[int, float]:
    found = {point.gpus: vars(point)[field].tflops for point in points}
    return {gpus: value for gpus, value in found.items() if value is not None}


def predicted_lines(predicted: Sequence[Predicted], reference: Reference) -> list[str]:
    """The figure as a table of at most 80 columns."""
    alpa = load_alpa()
    head = ("GPUs", "model", "DeepSpeed", "Alpa", *(short for _, _, short, _ in CURVES))
    rows = []
    for point in predicted:
        there = reference.tflops.get(point.gpus)
        rows.append(
            (
                str(point.gpus),
                point.model,
                "-" if there is None else f"{there:.1f}" if there > 0 else "no memory",
                f"{alpa[point.gpus]:.1f}" if point.gpus in alpa else "-",
                *(f"{point.tflops(vars(point)[field]):.1f}" for field, _, _, _ in CURVES),
            )
        )
    return columns([head, *rows])
