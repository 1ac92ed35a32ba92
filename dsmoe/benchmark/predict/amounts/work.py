"""The work of a pass through the model: what is multiplied, what moves, how often the host acts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Iterable

from dsmoe.benchmark.cases.case import Case

#: The parts of an iteration, in the order of the table.
PARTS = (
    "products",
    "attention",
    "elementwise",
    "loss",
    "optimizer",
    "exchange",
    "reduction",
    "gather",
    "bubble",
    "launch",
)
#: The size of a head at which a cluster's rate of attention is meant.
ATTENTION_SIZE = 64
#: Tokens at which products, and fused attention, reach half of their rate; dropout's share of
#: attention's rate. dsmoe calibrate, H200: products of 8,192 tokens reach 0.95 of the rate of
#: 65,536, attention 0.85, and attention with dropout 0.67 to 0.75 of that without.
HALF_PRODUCT, HALF_ATTENTION, DROPOUT_SHARE = 400, 1500, 0.7
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Work:
    """One kind of operation of a pass, on one device.

    ``flop``: of matrix products (a multiplication and an addition are two); ``bytes``: read and
    written in the device's memory; ``launches``: operations that the host starts; ``kernel`` and
    ``elements``: an elementwise operation that dsmoe calibrate measures by that name; ``rows``:
    steps of a running count, one after another; ``slower``: times the seconds at the full rate;
    ``fp8``: products in FP8.
    """

    part: str
    flop: float = 0.0
    bytes: float = 0.0
    launches: float = 0.0
    kernel: str = ""
    elements: float = 0.0
    rows: float = 0.0
    slower: float = 1.0
    fp8: bool = False

    def times(self, count: float) -> Work:
        """The same ``count`` times."""
        return replace(
            self,
            flop=self.flop * count,
            bytes=self.bytes * count,
            launches=self.launches * count,
            elements=self.elements * count,
            rows=self.rows * count,
        )


@dataclass(frozen=True)
class Sizes:
    """A micro-batch on one process. T tokens, H width, N heads, S positions, F feed-forward width,
    V vocabulary, E experts, C slots of one in a group of T tokens, R rows of this process's
    experts, e bytes of an element, p probability of dropout."""

    T: int
    H: int
    N: int
    S: int
    F: int
    V: int
    E: int
    C: int
    R: int
    e: int
    dropout: bool
    fp8: bool = False

    @property
    def hidden(self) -> float:
        """Bytes of a hidden state."""
        return float(self.T * self.H * self.e)

    @property
    def slow_product(self) -> float:
        """How much longer products take than at the full rate."""
        return 1 + HALF_PRODUCT / self.T

    @property
    def slow_attention(self) -> float:
        """The same for fused attention, by the size of a head, dropout and the tokens."""
        head = math.sqrt(ATTENTION_SIZE * self.N / self.H)
        return head * (1 + HALF_ATTENTION / self.T) / (DROPOUT_SHARE if self.dropout else 1.0)

    @property
    def scores(self) -> float:
        """Bytes of the attention weights of a layer."""
        return float(self.T * self.S * self.N * self.e)


def sizes_of(case: Case) -> Sizes:
    """The sizes of ``case``; the capacity as deepspeed/moe/gshard/routing.py has it."""
    model = case.model
    tokens = case.micro_batch_size * model.sequence_length
    wanted = -int(-model.top_k * tokens * case.capacity_factor // model.num_experts)
    capacity = min(max(wanted, case.min_capacity), tokens)
    return Sizes(
        T=tokens,
        H=model.hidden_size,
        N=model.num_heads,
        S=model.sequence_length,
        F=model.ffn_multiplier * model.hidden_size,
        V=model.vocab_size,
        E=model.num_experts,
        C=capacity,
        R=model.num_experts * capacity,
        e=BYTES[case.weight_precision],
        dropout=case.dropout > 0,
        fp8=case.precision == "fp8",
    )


@dataclass(frozen=True)
class ModelPass:
    """A layer's work: forward, backward, and forward again with remat."""

    forward: tuple[Work, ...]
    backward: tuple[Work, ...]
    again: tuple[Work, ...]

    def all(self, remat: bool) -> tuple[Work, ...]:
        """Everything that one micro-batch needs of it."""
        return (*self.forward, *(self.again if remat else ()), *self.backward)


def total(works: Iterable[Work], name: str) -> float:
    """The sum of one figure (flop, bytes, launches, ...) of ``works``."""
    return float(sum(vars(work)[name] for work in works))
