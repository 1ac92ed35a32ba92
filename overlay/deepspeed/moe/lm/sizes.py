"""The model sizes of the Alpa artifact (OSDI 2022), and the closed formula for their parameters.

Imports nothing outside the standard library: dsmoe loads this file by its path
(``dsmoe.common.overlay_modules``), so that sizes and formula are written here alone.

Sources: benchmark/alpa/suite_paper_manual_moe.py of alpa-projects/alpa at commit 8350d913, and
the paper's figure for 690M, 70B and 140B.
"""

from __future__ import annotations

from typing import NamedTuple

# What all sizes share.
NUM_HEADS = 16
VOCAB_SIZE = 32000
SEQUENCE_LENGTH = 1024
FFN_MULTIPLIER = 8
MOE_EVERY = 2
TOP_K = 2


class Size(NamedTuple):
    """What differs between the sizes; the fields are those of ``MoELMConfig``."""

    hidden_size: int
    num_layers: int
    num_experts: int


SIZES = {
    "380M": Size(768, 8, 8),
    "690M": Size(768, 8, 16),
    "1.3B": Size(768, 16, 16),
    "2.4B": Size(1024, 16, 16),
    "4.5B": Size(1024, 16, 32),
    "10B": Size(1536, 16, 32),
    "27B": Size(2048, 16, 48),
    "70B": Size(2048, 32, 64),
    "140B": Size(2048, 32, 128),
}


def count_parameters(
    hidden_size: int,
    num_layers: int,
    num_experts: int,
    vocab_size: int = VOCAB_SIZE,
    sequence_length: int = SEQUENCE_LENGTH,
    ffn_multiplier: int = FFN_MULTIPLIER,
    moe_every: int = MOE_EVERY,
    expert_parallel_size: int = 1,
) -> int:
    """Parameters of a model; with an expert parallel size, those that one process holds.

    With width M, vocabulary V, sequence S, hidden width F = ``ffn_multiplier`` M and E experts:

    - embedding V M (also the output layer: tied) and positions S M;
    - attention: query, key, value 3 M M + 3 M, output M M + M: together 4 M M + 4 M;
    - two layer norms in a layer, weight and bias: 4 M; one after the last layer: 2 M;
    - a feed-forward layer: M F + F, then F M + M: together 2 M F + F + M;
    - in an MoE layer (the last of every ``moe_every``; none with one expert) E of those, and the
      router M E, which has no bias.

    Raises:
        ValueError: if the experts cannot be shared out evenly.
    """
    if expert_parallel_size < 1 or num_experts % expert_parallel_size:
        raise ValueError(
            f"expert_parallel_size is {expert_parallel_size};"
            f" expected a divisor of num_experts = {num_experts}"
        )
    width, hidden = hidden_size, ffn_multiplier * hidden_size
    local_experts = num_experts // expert_parallel_size
    moe_layers = num_layers // moe_every if num_experts > 1 else 0
    feed_forward = 2 * width * hidden + hidden + width
    embeddings = (vocab_size + sequence_length) * width
    layer = (4 * width * width + 4 * width) + 4 * width
    moe = local_experts * feed_forward + width * num_experts
    return (
        embeddings
        + num_layers * layer
        + (num_layers - moe_layers) * feed_forward
        + moe_layers * moe
        + 2 * width
    )
