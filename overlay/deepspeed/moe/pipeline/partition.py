"""Which layers a stage of a pipeline has: stages of about equal planned cost.

Imports nothing outside the standard library: dsmoe loads this file by its path
(``dsmoe.common.overlay_modules``), so that a plan and a run cut in the same way.

The cost of a layer is its multiplications for one token, forward, with width M, sequence S, hidden
width F, experts E and k experts a token. The backward pass costs twice as much, remat as much again
(of a layer, not of the output layer).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Sequence


class StageLayers(NamedTuple):
    """Layers ``first`` to ``last`` - 1 of a model, numbered from 0."""

    first: int
    last: int

    @property
    def numbers(self) -> range:
        return range(self.first, self.last)


def layer_costs(config: Any) -> list[int]:
    """The planned cost of each layer of a ``MoELMConfig``, or of anything with its fields.

    - attention: 4 M M for its matrices, 2 S M for scores and weighted values;
    - a dense feed-forward layer: 2 M F; experts: k times that, and the router M E.
    """
    width, hidden = config.hidden_size, config.ffn_multiplier * config.hidden_size
    attention = 4 * width * width + 2 * config.sequence_length * width
    dense = attention + 2 * width * hidden
    experts = attention + 2 * width * hidden * config.top_k + width * config.num_experts
    every = config.moe_every
    has_experts = [
        config.num_experts > 1 and i % every == every - 1 for i in range(_layers(config))
    ]
    factor = 4 if config.remat else 3
    return [factor * (experts if e else dense) for e in has_experts]


def end_costs(config: Any) -> tuple[int, int]:
    """The planned cost of the embedding (its lookups, forward and backward: 3 M) and of the output
    layer (3 M V)."""
    return 3 * config.hidden_size, 3 * config.hidden_size * config.vocab_size


def cut(config: Any, stages: int) -> list[StageLayers]:
    """The layers of each stage: the costliest stage costs as little as it can.

    Of equal ones the cut with the smaller sum of squares is taken, then the one with fewer layers
    in the first stages. Raises ValueError for less than one stage, or more stages than layers.
    """
    first, last = end_costs(config)
    return cut_costs(layer_costs(config), stages, first, last)


def cut_costs(
    costs: Sequence[int], stages: int, first: int = 0, last: int = 0
) -> list[StageLayers]:
    """:func:`cut` for given costs; ``first`` and ``last`` are added to the first and last stage."""
    layers = len(costs)
    if not 1 <= stages <= layers:
        raise ValueError(
            f"{stages} pipeline stages for {layers} layers; expected 1 to {layers}: a stage has at"
            " least one layer"
        )
    whole = list(costs)
    whole[0] += first
    whole[-1] += last
    sums = [0]
    for cost in whole:
        sums.append(sums[-1] + cost)
    # best[n]: (largest, sum of squares, ends) of the first n layers in so many stages
    best: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    for stage in range(1, stages + 1):
        found: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for end in range(stage, layers - (stages - stage) + 1):
            options = []
            for start, (largest, squares, ends) in best.items():
                if start < end:
                    cost = sums[end] - sums[start]
                    options.append((max(largest, cost), squares + cost * cost, (*ends, end)))
            found[end] = min(options)
        best = found
    ends = best[layers][2]
    return [StageLayers(a, b) for a, b in zip((0, *ends), ends)]


def _layers(config: Any) -> int:
    count: int = config.num_layers
    return count
