"""What a process has of the model: its stage's layers; the parameters that all processes share, and
its experts'."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, make_dataclass
from typing import Any

from dsmoe.benchmark.cases.case import UNCOUNTED, Case, ModelCase
from dsmoe.common.overlay_modules import load, model_sizes


@dataclass(frozen=True)
class Part:
    """The layers of one stage, ``dense`` ones and ``mixtures``; ``first``: with the embedding;
    ``last``: with the output layer and the loss. The whole model is both."""

    dense: int
    mixtures: int
    first: bool = True
    last: bool = True

    @property
    def is_stage(self) -> bool:
        """Whether there are other stages."""
        return not (self.first and self.last)


def whole(model: ModelCase) -> Part:
    """All layers: every second one is a mixture."""
    return Part(model.num_layers - model.num_layers // 2, model.num_layers // 2)


@functools.lru_cache(maxsize=None)
def parts(model: ModelCase, remat: bool, stages: int) -> tuple[Part, ...]:
    """The stages as a run cuts them (overlay, deepspeed/moe/pipeline/partition.py).

    Raises ValueError for more stages than layers.
    """
    if stages == 1:
        return (whole(model),)
    every = model_sizes().MOE_EVERY
    settings: dict[str, Any] = {**asdict(model), "remat": remat, "moe_every": every}
    config = make_dataclass("Config", settings)(**settings)
    found = []
    for number, (first, last) in enumerate(
        load("deepspeed/moe/pipeline/partition.py").cut(config, stages)
    ):
        mixtures = last // every - first // every
        dense = last - first - mixtures
        found.append(Part(dense, mixtures, number == 0, number == stages - 1))
    return tuple(found)


@dataclass(frozen=True)
class Held:
    """Elements of one process: ``dense`` ones, which every process has, and ``experts``' ones.

    ``tensors``: how many parameters they are.
    """

    dense: int
    experts: int
    tensors: int

    @property
    def whole(self) -> int:
        """All of them."""
        return self.dense + self.experts


def held(case: Case, part: Part | None = None) -> Held:
    """What a process holds of ``part`` (None: of the whole model), from the model's closed formula
    of its parameters."""
    model, size = case.model, case.parallel.expert_parallel_size
    part = part or whole(model)
    h, f = model.hidden_size, model.ffn_multiplier
    ends, dense, mixture = _elements(model)
    one = 2 * f * h * h + f * h + h  # two matrices and two biases
    experts = part.mixtures * model.num_experts * one
    embedding = model.vocab_size * h
    shared = part.dense * dense + part.mixtures * mixture - experts
    # the output layer is the embedding, and a copy of it where they are in two stages
    if part.first and part.last:
        shared += ends
    elif part.first:
        shared += embedding + model.sequence_length * h
    elif part.last:
        shared += ends - model.sequence_length * h
    local = model.num_experts // size
    stacked = 4 if case.moe_implementation != "deepspeed" else 4 * local
    tensors = part.dense * 12 + part.mixtures * (8 + 1 + stacked)
    tensors += 2 * part.first + 2 * part.last + (part.last and not part.first)
    return Held(shared, experts // size, tensors)


@functools.lru_cache(maxsize=None)
def _elements(model: ModelCase) -> tuple[int, int, int]:
    """Elements of embedding, positions and final norm; of a dense layer; of a mixture."""
    sizes = {name: value for name, value in asdict(model).items() if name not in UNCOUNTED}
    ends, one, two = (
        model_sizes().count_parameters(**{**sizes, "num_layers": layers}) for layers in (0, 1, 2)
    )
    return ends, one - ends, two - one
