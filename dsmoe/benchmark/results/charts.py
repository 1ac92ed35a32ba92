"""Small charts as inline SVG, without a library: what the HTML report embeds."""

from __future__ import annotations

import math
from html import escape
from typing import Callable, Sequence

WIDTH, HEIGHT = 420, 170
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 14, 26


def line_chart(
    values: Sequence[float | None], title: str, unit: str, first: int = 1, marked: int = 0
) -> str:
    """A line through ``values`` at ``first``, ``first`` + 1, …; None and NaN are gaps.

    The first ``marked`` points are drawn apart (warm-up). ``title`` and ``unit`` are plain text.
    """
    finite = [v for v in values if v is not None and math.isfinite(v)]
    if not finite:
        return _frame(title, '<text x="60" y="80" class="axis">no finite value</text>')
    low, high = min(finite), max(finite)
    if high == low:
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)

    def x(index: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * index / max(1, len(values) - 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    body = [_y_axis(low, high, y), _x_axis(first, len(values), x)]
    piece: list[str] = []
    for index, value in [*enumerate(values), (len(values), None)]:
        if value is not None and math.isfinite(value):
            piece.append(f"{x(index):.1f},{y(value):.1f}")
            if index < marked or len(values) <= 30:
                kind = "warm" if index < marked else "dot"
                body.append(
                    f'<circle cx="{x(index):.1f}" cy="{y(value):.1f}" r="2" class="{kind}"/>'
                )
        elif piece:
            body.append(f'<polyline points="{" ".join(piece)}" class="line"/>')
            piece = []
    body.append(f'<text x="{WIDTH - RIGHT}" y="{TOP - 3}" class="axis end">{escape(unit)}</text>')
    return _frame(title, "".join(body))


def load_chart(load: Sequence[Sequence[float]], title: str) -> str:
    """A row of cells for each mixture layer, a cell for each expert, shaded by its share.

    Full shade is twice the even share or more.
    """
    experts = max(len(layer) for layer in load)
    cell = (WIDTH - LEFT - RIGHT) / experts
    tall = min(22.0, (HEIGHT - TOP - BOTTOM) / len(load))
    body = []
    for row, layer in enumerate(load):
        top = TOP + row * tall
        at = f'x="{LEFT - 6}" y="{top + tall / 2 + 3:.1f}"'
        body.append(f'<text {at} class="axis end">layer {row + 1}</text>')
        for expert, share in enumerate(layer):
            shade = min(1.0, share * len(layer) / 2)
            body.append(
                f'<rect x="{LEFT + expert * cell:.2f}" y="{top:.1f}" width="{cell:.2f}" '
                f'height="{tall - 2:.1f}" class="cell" fill-opacity="{shade:.3f}">'
                f"<title>layer {row + 1}, expert {expert + 1}: {100 * share:.1f} %</title></rect>"
            )
    bottom = TOP + len(load) * tall + 14
    body.append(f'<text x="{LEFT}" y="{bottom:.1f}" class="axis">experts 1 to {experts}</text>')
    return _frame(title, "".join(body))


def _frame(title: str, body: str) -> str:
    name = escape(title, quote=True)
    return (
        f'<figure><figcaption>{name}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{name}">{body}</svg></figure>'
    )


def _y_axis(low: float, high: float, y: Callable[[float], float]) -> str:
    lines = []
    for value in (low, (low + high) / 2, high):
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'class="grid"/><text x="{LEFT - 6}" y="{y(value) + 3:.1f}" class="axis end">'
            f"{value:.4g}</text>"
        )
    return "".join(lines)


def _x_axis(first: int, count: int, x: Callable[[int], float]) -> str:
    ends = [(0, "start"), (count - 1, "end")] if count > 1 else [(0, "start")]
    return "".join(
        f'<text x="{x(index):.1f}" y="{HEIGHT - 8}" class="axis {side}">{first + index}</text>'
        for index, side in ends
    )
