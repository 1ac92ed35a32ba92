"""The figure: held-out loss of all arms, expert load and dropped choices over the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Sequence

from dsmoe.benchmark.results.figure import plain, pyplot, save
from dsmoe.convergence.arms import ARMS
from dsmoe.convergence.records import Curve

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
    words = "Below, thick lines: mean of the MoE layers; thin ones: each layer."
    if len({curve.seed for curve in curves}) > 1:
        words += " A line for each seed; last values: mean ± half the range over the seeds."
    fig.text(0.01, 0.008, words, fontsize=8)
    top = 0.965 - 0.021 * ((len(labels) + 1) // 2)
    fig.tight_layout(rect=(0, 0.02, 1, top))
    return save(fig, output)


def _losses(ax: Any, curves: Sequence[Curve], unit: float) -> None:
    """Held-out loss of every run; the last value of each arm is in its label."""
    named: set[str] = set()
    shown: list[float] = []
    for curve in curves:
        points = _drawn(curve, curves)
        losses = [point["held_out_loss"] for point in points]
        shown += losses
        finals = [c.points[-1]["held_out_loss"] for c in curves if c.arm == curve.arm]
        mean = sum(finals) / len(finals)
        spread = f" ± {(max(finals) - min(finals)) / 2:.4f}" if len(finals) > 1 else ""
        words = f"{ARMS[curve.arm].words}: last {mean:.4f}{spread}"
        tokens = [point["tokens"] / unit for point in points]
        label = None if curve.arm in named else words  # one label an arm
        ax.plot(tokens, losses, label=label, **STYLES[curve.arm])
        named.add(curve.arm)
    room = 0.05 * (max(shown) - min(shown)) or 0.1
    ax.set_ylim(min(shown) - room, max(shown) + room)
    ax.set_ylabel("cross-entropy, nats a byte")
    ax.set_title("Held-out loss", loc="left")


def _differences(ax: Any, curves: Sequence[Curve], unit: float) -> None:
    """Held-out loss less that of the dense arm (else the first) with the same seed and tokens."""
    arms = [curve.arm for curve in curves]
    reference = next((arm for arm in arms if ARMS[arm].dense), arms[0])
    base = {c.seed: _loss_at(c) for c in curves if c.arm == reference}
    for curve in curves:
        if curve.arm == reference or curve.seed not in base:
            continue
        points = [p for p in _drawn(curve, curves) if p["tokens"] in base[curve.seed]]
        ax.plot(
            [point["tokens"] / unit for point in points],
            [point["held_out_loss"] - base[curve.seed][point["tokens"]] for point in points],
            **STYLES[curve.arm],
        )
    ax.axhline(0.0, **REFERENCE)
    ax.set_ylabel(f"nats a byte (below 0: better than {reference})")
    ax.set_title(f"Held-out loss less that of {reference}", loc="left")


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
    """``value`` of each MoE layer's entry in ``key``: thin lines, their mean a thick one."""
    for curve in curves:
        points = [point for point in curve.points if key in point]  # none before the first step
        tokens = [point["tokens"] / unit for point in points]
        layers = list(zip(*([value(entry) for entry in point[key]] for point in points)))
        style = STYLES[curve.arm]
        thin = {"color": style["color"], "linewidth": 0.6, "alpha": 0.45}
        for layer in layers:
            ax.plot(tokens, layer, **thin)
        ax.plot(tokens, [sum(at) / len(at) for at in zip(*layers)], **style)


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
