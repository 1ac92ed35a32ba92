#!/usr/bin/env python3
"""Draw docs/pictures/architecture.png: how the parts of this project meet.

python scripts/draw_architecture.py      needs matplotlib
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "pictures" / "architecture.png"
INPUT, OURS, MADE, RESULT = "#efe6d5", "#d8e7f3", "#e3efdc", "#eeeeee"

# name: (x, y, width, height, colour, title, lines); places are percent of the picture
BOXES = {
    "base": (
        1,
        70,
        23,
        24,
        INPUT,
        "pinned DeepSpeed",
        "commit bd3ebd, from a clone\nor the release archive",
    ),
    "patch": (1, 39, 23, 24, OURS, "patch/", "small diffs: compatibility,\ndefects, hooks"),
    "overlay": (1, 8, 23, 24, OURS, "overlay/", "new files: model, AdaFactor,\nkernels, launcher"),
    "apply": (
        31,
        45,
        17,
        38,
        OURS,
        "dsmoe apply",
        "builds the tree in git,\ncompares it with the\nlocked tree id, then\nmoves the work tree",
    ),
    "checkout": (
        55,
        45,
        17,
        38,
        MADE,
        "patched DeepSpeed",
        "build/DeepSpeed\n\nengine, ZeRO, launcher\nmoe/gshard, moe/lm\nmoe/kernels",
    ),
    "commands": (31, 8, 17, 24, OURS, "dsmoe run", "one case of a suite;\nchecks, plan, hosts"),
    "training": (55, 8, 17, 24, MADE, "training processes", "one a GPU, or on\nthe CPU with gloo"),
    "results": (80, 8, 19, 24, RESULT, "results/", "a row (artifact's format)\nand a JSON record"),
    "show": (80, 45, 19, 24, OURS, "dsmoe plot, report", "the paper's figure,\nan HTML page"),
}
ARROWS = [
    ("base", "right", "apply", "left"),
    ("patch", "right", "apply", "left"),
    ("overlay", "right", "apply", "left"),
    ("apply", "right", "checkout", "left"),
    ("commands", "right", "training", "left"),
    ("checkout", "bottom", "training", "top"),
    ("training", "right", "results", "left"),
    ("results", "top", "show", "bottom"),
]


def point(name: str, side: str) -> tuple[float, float]:
    """The middle of one side of a box."""
    x, y, width, height, *_ = BOXES[name]
    return {
        "left": (x, y + height / 2),
        "right": (x + width, y + height / 2),
        "top": (x + width / 2, y + height),
        "bottom": (x + width / 2, y),
    }[side]


def draw(axes: Axes) -> None:
    for x, y, width, height, colour, title, lines in BOXES.values():
        style = "round,pad=0,rounding_size=1.2"
        axes.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle=style, fc=colour, ec="#555555", lw=0.8)
        )
        middle, top = x + width / 2, y + height
        axes.text(middle, top - 3, title, ha="center", va="top", fontsize=9, weight="bold")
        axes.text(middle, top - 10, lines, ha="center", va="top", fontsize=7.5, linespacing=1.35)
    for start, side, end, other in ARROWS:
        arrow = FancyArrowPatch(
            point(start, side),
            point(end, other),
            arrowstyle="-|>",
            mutation_scale=10,
            color="#555555",
        )
        axes.add_patch(arrow)


def main() -> None:
    fig, axes = pyplot.subplots(figsize=(9.2, 3.7), dpi=130, layout="constrained")
    axes.set(xlim=(0, 100), ylim=(4, 98))
    axes.axis("off")
    draw(axes)
    PICTURE.parent.mkdir(exist_ok=True)
    fig.savefig(PICTURE, metadata={"Software": None})
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
