"""GShard's Algorithm 1 and the layer around it, as plain loops in float64.

Written from the paper (arXiv 2006.16668, Algorithm 1 and section 3.2), one token after another;
shares nothing with the code under test, not even its library.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Callable

import numpy as np


@dataclasses.dataclass
class Choice:
    """One choice of one token."""

    token: int
    expert: int
    tried: bool
    slot: int = -1
    kept: bool = False
    weight: float = 0.0


@dataclasses.dataclass
class Group:
    """What Algorithm 1 says of one group."""

    first: list[Choice]
    second: list[Choice]
    aux_loss: float
    z_loss: float
    used: int
    load: list[int]


def _best(values: Any, without: int = -1) -> int:
    """Index of the greatest value, the lowest of equals."""
    best = -1
    for i, value in enumerate(values):
        if i != without and (best < 0 or value > values[best]):
            best = i
    return best


def route_group(
    logits: Any,
    capacity: int,
    top_k: int = 2,
    policy: str = "all",
    renormalize: str = "kept",
    used: Any = None,
    noise: Any = None,
) -> Group:
    """Algorithm 1 for logits [S, E]; ``noise`` is [S] for "random", [S, E] for "sampling"."""
    tokens, experts = logits.shape
    used = [True] * tokens if used is None else [bool(u) for u in used]
    gates = []
    for s in range(tokens):
        powers = [math.exp(x - max(logits[s])) for x in logits[s]]
        gates.append([p / sum(powers) for p in powers])
    first, second = [], []
    for s in range(tokens):
        e1 = _best(logits[s])
        first.append(Choice(s, e1, used[s]))
        if top_k == 2:
            scores = logits[s] + noise[s] if policy == "sampling" else logits[s]
            e2 = _best(scores, without=e1)
            g1, g2 = gates[s][e1], gates[s][e2]
            tried = used[s] and (policy != "random" or 2 * g2 / (g1 + g2) > noise[s])
            second.append(Choice(s, e2, tried))
    given = [0] * experts
    for choice in first + second:
        if choice.tried:
            choice.slot = given[choice.expert]
            choice.kept = choice.slot < capacity
            given[choice.expert] += 1
    for s in range(tokens):
        mine = [first[s]] + ([second[s]] if top_k == 2 else [])
        counted = mine if renormalize == "chosen" else [c for c in mine if c.kept]
        total = 1.0 if top_k == 1 else sum(gates[s][c.expert] for c in counted)
        for choice in mine:
            if choice.kept:
                choice.weight = gates[s][choice.expert] / total
    load = [sum(c.tried and c.expert == e for c in first) for e in range(experts)]
    n = sum(used)
    aux, z = 0.0, 0.0
    if n:
        for e in range(experts):
            mean_gate = sum(gates[s][e] for s in range(tokens) if used[s]) / n
            aux += load[e] / n * mean_gate / experts * experts**2
        for s in range(tokens):
            if used[s]:
                top = max(logits[s])
                z += (top + math.log(sum(math.exp(x - top) for x in logits[s]))) ** 2 / n
    return Group(first, second, aux, z, n, load)


def gelu(x: Any) -> Any:
    """GELU, tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def expert(w1: Any, b1: Any, w2: Any, b2: Any) -> Callable[[Any], Any]:
    """A feed-forward expert for one token [M], with weights [M, H], [H], [H, M], [M]."""
    return lambda x: gelu(x @ w1 + b1) @ w2 + b2


def layer(
    x: Any, gate_weight: Any, experts: list[Callable[[Any], Any]], groups: list[dict[str, Any]]
) -> tuple[Any, list[Group]]:
    """The whole layer for tokens x [N, M] and a gate [E, M].

    ``groups`` gives for each group in turn its number of ``tokens`` and the arguments of
    :func:`route_group`.
    """
    out = np.zeros_like(x)
    start = 0
    routed = []
    for arguments in groups:
        arguments = dict(arguments)
        tokens = arguments.pop("tokens")
        part = x[start : start + tokens]
        group = route_group(part @ gate_weight.T, **arguments)
        for choice in group.first + group.second:
            if choice.kept:
                y = experts[choice.expert](part[choice.token])
                out[start + choice.token] += choice.weight * y
        routed.append(group)
        start += tokens
    return out, routed


def losses(groups: list[Group]) -> tuple[float, float]:
    """Balance loss and z-loss of several groups, each weighted by its used tokens."""
    total = sum(g.used for g in groups) or 1
    aux = sum(g.aux_loss * g.used for g in groups) / total
    return aux, sum(g.z_loss * g.used for g in groups) / total


def dropped_share(groups: list[Group]) -> float:
    """Tried choices without a slot among those tried."""
    choices = [c for g in groups for c in g.first + g.second if c.tried]
    return sum(not c.kept for c in choices) / max(len(choices), 1)
