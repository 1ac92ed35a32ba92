"""A prediction as lines of text."""

from __future__ import annotations

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.flops import tflops
from dsmoe.benchmark.predict.amounts.work import PARTS
from dsmoe.benchmark.predict.time import Prediction


def prediction_lines(case: Case, found: Prediction) -> list[str]:
    """Seconds, tokens/s, TFLOPS and the parts, in ASCII; at most 80 columns."""
    figures = tflops(case, found.seconds)
    rate = case.tokens_per_step / found.seconds
    lines = [
        f"  predicted for {found.cluster}",
        f"    {'seconds an iteration':<31}{found.seconds:>14.4g}",
        f"    {'tokens/s':<31}{rate:>14,.0f}",
        f"    {'TFLOPS a device, artifact':<31}{figures['artifact']:>14.4g}",
        f"    {'TFLOPS a device, useful':<31}{figures['useful']:>14.4g}",
        f"    {'seconds by part':<31}{'exposed':>14}{'hidden':>14}",
    ]
    for name in PARTS:
        shown, beside = found.exposed[name], found.hidden[name]
        if shown or beside:
            lines.append(f"      {name:<29}{shown:>14.4g}{beside:>14.4g}")
    return lines
