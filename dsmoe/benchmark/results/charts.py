"""The report's charts: matplotlib's SVG, made fit to stand inside a page in light or dark."""

from __future__ import annotations

import io
import math
import re
from typing import Any, Iterable, Sequence

from dsmoe.benchmark.results.figure import plain, pyplot

# Each at least 3 to 1 against white and against the dark page; also told apart by their dashes.
COLOURS = ("#2f7fc1", "#c8641a", "#2a9060", "#b5509e")
DASHES = ("-", "--", "-.", ":")
INK = "#010203"  # becomes the page's own colour of text
WIDTH = 4.4  # inches: legible on a telephone
STYLES = [(colour, dash) for dash in DASHES for colour in COLOURS]
Series = Iterable["tuple[str, int, int, Sequence[float | None]]"]


def curves(series: Series, unit: str, title: str) -> str:
    """Lines over iterations, a (label, style, first iteration, values) each; None is a gap."""
    fig, ax = _axes(2.6)
    for label, style, first, values in series:
        colour, dash = STYLES[style % len(STYLES)]
        finite = [math.nan if value is None else value for value in values]
        marker = "." if len(values) <= 30 else None
        places = range(first, first + len(values))
        ax.plot(places, finite, color=colour, linestyle=dash, marker=marker, label=label)
    ax.set_xlabel("iteration")
    ax.set_ylabel(unit)
    ax.xaxis.get_major_locator().set_params(integer=True)
    plain(ax)
    ax.legend(frameon=False, fontsize=8)
    return _svg(fig, title)


def load_map(load: Sequence[Sequence[float]], title: str) -> str:
    """A row for each mixture layer, a cell for each expert: its share over the even share."""
    fig, ax = _axes(min(4.0, 1.3 + 0.25 * len(load)))
    experts = max(map(len, load))
    cells = [[share * len(layer) for share in layer] for layer in load]
    cells = [row + [math.nan] * (experts - len(row)) for row in cells]
    colours = pyplot().get_cmap("viridis", 8)
    drawn = ax.pcolormesh(cells, cmap=colours, vmin=0, vmax=2, edgecolor="face")
    for axis, count, name in ((ax.xaxis, experts, "expert"), (ax.yaxis, len(load), "layer")):
        step = -(-count // 16)
        axis.set_ticks([at + 0.5 for at in range(0, count, step)], range(1, count + 1, step))
        axis.set_label_text(name)
    ax.invert_yaxis()
    bar = fig.colorbar(drawn, extend="max")
    bar.set_label("share / even share")
    return _svg(fig, title)


def _axes(height: float) -> Any:
    plt = pyplot()
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with plt.rc_context(dict.fromkeys(inks, INK)):
        return plt.subplots(figsize=(WIDTH, height), layout="constrained")


def _svg(fig: Any, title: str) -> str:
    """An ``svg`` element: text as text, ids that no other chart has, no date, no white ground."""
    plt = pyplot()
    drawn = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "text.color": INK}):
        fig.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    plt.close(fig)
    text = drawn.getvalue()
    text = re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :]).replace(INK, "currentColor")
    text = re.sub(r'((?<= )id="|href="#|url\(#)', rf"\1{re.sub('[^A-Za-z0-9]', '', title)}", text)
    text = text.replace("#000000", "currentColor")  # of legend and colour scale
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1)
