"""The figure: held-out loss of all arms, expert load and dropped choices over the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Sequence

from dsmoe.benchmark.results.figure import plain, pyplot, save
from dsmoe.convergence.arms import ARMS
from dsmoe.convergence.curve_files import Curve
from dsmoe.convergence.lines import THIN, draw_seeds, mean_and_deviation

# Okabe and Ito's colours, apart for colour-blind readers; line styles tell them apart in grey.
STYLES: dict[str, dict[str, Any]] = {
    "moe": {"color": "#0072B2", "linestyle": "-", "linewidth": 2.0},
    "dense": {"color": "#000000", "linestyle": "--", "linewidth": 2.0},
    "moe-no-aux": {"color": "#D55E00", "linestyle": "-.", "linewidth": 2.0},
    "moe-artifact-adafactor": {"color": "#009E73", "linestyle": ":", "linewidth": 2.2},
    "moe-artifact-adafactor-same-lr": {
        "color": "#CC79A7",
        "linestyle": (0, (5, 1, 1, 1, 1, 1)),
        "linewidth": 1.8,
    },
}
# The start, near log(vocabulary), would press all curves together: drawn from here on.
SKIPPED_SHARE = 0.1
REFERENCE = {"color": "#6b6b6b", "linewidth": 0.8}
SIZE = (11.0, 8.4)


def draw(summary: dict[str, Any], curves: Sequence[Curve], output: Path) -> list[Path]:
    """Write ``output``.png and .pdf. Raises ResultsError, EnvironmentProblem."""
    plt = pyplot()
    fig, ((losses, apart), (load, dropped)) = plt.subplots(2, 2, figsize=SIZE)
    unit, name = _unit(curves)
    _losses(losses, curves, unit)
    _differences(apart, curves, unit)
    experts = [curve for curve in curves if not ARMS[curve.arm].dense]
    _by_layer(load, experts, "expert_load", unit, lambda layer: max(layer) * len(layer))
    load.axhline(1.0, **REFERENCE)
    load.set_title("Expert load in training (1: balanced)", loc="left")
    load.set_ylabel("busiest expert's share of first choices\n/ even share")
    load.set_ylim(bottom=0.9)
    _by_layer(dropped, experts, "dropped_share", unit, lambda share: 100 * share)
    dropped.set_title("Choices that found their expert full, in training", loc="left")
    dropped.set_ylabel("dropped, % of the choices")
    dropped.set_ylim(bottom=0)
    for ax in fig.axes:
        ax.set_xlabel(f"tokens trained on ({name})")
        ax.set_xlim(left=0)
        plain(ax)
    fig.suptitle(_title(summary, curves), fontsize=10)
    handles, labels = losses.get_legend_handles_labels()
    fig.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.965),
        ncol=2,
        frameon=False,
        handlelength=3.5,
    )
    words = "Below: mean of the MoE layers; a thin line is one layer."
    if len({curve.seed for curve in curves}) > 1:
        words = (
            "A thin line is one seed, a bold one the mean; last values: mean ± standard deviation. "
            "Below: mean of the MoE layers."
        )
    fig.text(0.01, 0.008, words, fontsize=8)
    top = 0.965 - 0.021 * ((len(labels) + 1) // 2)
    fig.tight_layout(rect=(0, 0.02, 1, top))
    return save(fig, output)


def _losses(ax: Any, curves: Sequence[Curve], unit: float) -> None:
    """Held-out loss of every arm; its last value is in its label."""
    shown: list[float] = []
    for arm, runs in by_arm(curves).items():
        lines = [
            {point["tokens"] / unit: point["held_out_loss"] for point in _drawn(run, curves)}
            for run in runs
        ]
        shown += [loss for line in lines for loss in line.values()]
        last = mean_and_deviation([run.points[-1]["held_out_loss"] for run in runs])
        draw_seeds(ax, lines, STYLES[arm], f"{ARMS[arm].words}: last {last}")
    room = 0.05 * (max(shown) - min(shown)) or 0.1
    ax.set_ylim(min(shown) - room, max(shown) + room)
    ax.set_ylabel("cross-entropy, nats a byte")
    ax.set_title("Held-out loss", loc="left")


def _differences(ax: Any, curves: Sequence[Curve], unit: float) -> None:
    """Held-out loss less that of the dense arm (else the first) with the same seed and tokens."""
    arms = by_arm(curves)
    reference = next((arm for arm in arms if ARMS[arm].dense), next(iter(arms)))
    base = {c.seed: _loss_at(c) for c in arms.pop(reference)}
    for arm, runs in arms.items():
        lines = [
            {
                point["tokens"] / unit: point["held_out_loss"] - base[run.seed][point["tokens"]]
                for point in _drawn(run, curves)
                if point["tokens"] in base[run.seed]
            }
            for run in runs
            if run.seed in base
        ]
        if lines:
            draw_seeds(ax, lines, STYLES[arm])
    ax.axhline(0.0, **REFERENCE)
    ax.set_ylabel(f"nats a byte (below 0: better than {reference})")
    ax.set_title(f"Held-out loss less that of {reference}", loc="left")


def by_arm(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """The runs of each arm, in the order of ``curves``."""
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        arms.setdefault(curve.arm, []).append(curve)
    return arms


def _loss_at(curve: Curve) -> dict[int, float]:
    return {point["tokens"]: point["held_out_loss"] for point in curve.points}


def _drawn(curve: Curve, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """The points of ``curve`` after the start."""
    longest = max(other.points[-1]["tokens"] for other in curves)
    points = [point for point in curve.points if point["tokens"] >= SKIPPED_SHARE * longest]
    return points or curve.points[-1:]


def _by_layer(
    ax: Any, curves: Sequence[Curve], key: str, unit: float, value: Callable[[Any], float]
) -> None:
    """Mean over the MoE layers of ``value`` of each one's entry in ``key``; each layer thin."""
    for arm, runs in by_arm(curves).items():
        means = []
        for run in runs:
            points = [point for point in run.points if key in point]  # none before the first step
            tokens = [point["tokens"] / unit for point in points]
            layers = list(zip(*([value(entry) for entry in point[key]] for point in points)))
            if len(runs) == 1:
                for layer in layers:
                    ax.plot(tokens, layer, color=STYLES[arm]["color"], **THIN)
            means.append(dict(zip(tokens, (sum(at) / len(at) for at in zip(*layers)))))
        draw_seeds(ax, means, STYLES[arm])


def _unit(curves: Sequence[Curve]) -> tuple[float, str]:
    """Tokens in one unit of the axis, and its name."""
    longest = max(curve.points[-1]["tokens"] for curve in curves)
    return (1e6, "millions") if longest >= 2e6 else (1e3, "thousands")


def _title(summary: dict[str, Any], curves: Sequence[Curve]) -> str:
    s = summary["common"]["setting"]
    device = curves[0].figures["device"]["device_name"]
    device = device if summary["common"]["device"] == "cuda" else "CPU"
    seeds = sorted({curve.seed for curve in curves})
    several = f", {len(seeds)} seeds" if len(seeds) > 1 else ""
    return (
        f"Hidden size {s['hidden_size']}, {s['num_layers']} layers, {s['num_experts']} experts in "
        f"every second, top-2; sequences of {s['sequence_length']}, "
        f"{s['global_batch_size']} a step, {s['steps']} steps, "
        f"{s['precision']}{several}; {device}"
    )
