#!/usr/bin/env python3
"""Draw docs/pictures/throughput.png, the figure of the README, from docs/lab/throughput.json.

python scripts/draw_throughput.py      needs matplotlib
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "docs" / "lab" / "throughput.json"
PICTURE = ROOT / "docs" / "pictures" / "throughput.png"
COLOURS = {"artifact": "#8a8a8a", "other": "#c78a3b", "dsmoe": "#1b6ca8"}


def main() -> None:
    rows = json.loads(DATA.read_text(encoding="utf-8"))["rows"]
    fig, axes = pyplot.subplots(figsize=(8.4, 3.1), dpi=130, layout="constrained")
    places = range(len(rows), 0, -1)
    values = [row["tokens_per_second"] for row in rows]
    axes.barh(places, values, color=[COLOURS[row["group"]] for row in rows], height=0.66)
    labels = [f"{row['system']}\n{row['settings']}, n = {row['n']}" for row in rows]
    axes.set_yticks(list(places), labels, fontsize=8)
    for place, row in zip(places, rows):
        text = f"{row['tokens_per_second']:,}  ({row['seconds']:.3g} s an iteration)"
        axes.text(row["tokens_per_second"] + 6000, place, text, va="center", fontsize=8)
    axes.set_xlim(0, 1.42 * max(values))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("tokens/s, 380M MoE model, one H200", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE, metadata={"Software": None})
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
