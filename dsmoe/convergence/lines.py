"""Lines of one arm over its seeds: every seed thin, their mean bold."""

from __future__ import annotations

import statistics
from typing import Any, Mapping, Sequence

THIN = {"linewidth": 0.6, "alpha": 0.45}


def draw_seeds(
    ax: Any,
    lines: Sequence[Mapping[float, float]],
    style: Mapping[str, Any],
    label: str | None = None,
) -> None:
    """Draw ``lines``, a mapping of x to y for each seed; one seed alone is the bold line itself.

    The mean is over the values of x that all seeds have.
    """
    if len(lines) > 1:
        for line in lines:
            ax.plot(list(line), list(line.values()), color=style["color"], **THIN)
    common = sorted(set(lines[0]).intersection(*lines[1:]))
    ax.plot(
        common, [statistics.fmean(line[x] for line in lines) for x in common], label=label, **style
    )


def mean_and_deviation(values: Sequence[float]) -> str:
    """``0.9630 ± 0.0014``, the sample's standard deviation; without it for one value."""
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean
