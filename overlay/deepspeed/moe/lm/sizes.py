"""The named model sizes of the Alpa artifact, and the closed formula for their parameters."""

from __future__ import annotations

from typing import Any

from .config import MoELMConfig

# name: (hidden size, layers, experts), from the artifact's suite and the paper's figure
SIZES: dict[str, tuple[int, int, int]] = {
    "380M": (768, 8, 8),
    "690M": (768, 8, 16),
    "1.3B": (768, 16, 16),
    "2.4B": (1024, 16, 16),
    "4.5B": (1024, 16, 32),
    "10B": (1536, 16, 32),
    "27B": (2048, 16, 48),
    "70B": (2048, 32, 64),
    "140B": (2048, 32, 128),
}


def config_for(name: str, **changes: Any) -> MoELMConfig:
    """The configuration of a named size, with ``changes`` to its other fields.

    Raises:
        ValueError: for a name that is not in :data:`SIZES`.
    """
    if name not in SIZES:
        raise ValueError(f"model size is {name!r}; expected one of {', '.join(SIZES)}")
    hidden, layers, experts = SIZES[name]
    fields: dict[str, Any] = {
        "hidden_size": hidden,
        "num_layers": layers,
        "num_experts": experts,
    }
    fields.update(changes)
    return MoELMConfig(**fields)


def parameter_count(config: MoELMConfig, expert_parallel_size: int = 1) -> int:
    """Parameters of the model; with an expert parallel size, those that one process holds.

    With width M, vocabulary V, sequence S, hidden width F and E experts:

    - embedding V M (also the output layer: tied) and positions S M;
    - attention: query, key, value 3 M M + 3 M, output M M + M: together 4 M M + 4 M;
    - two layer norms in a layer, weight and bias: 4 M; one after the last layer: 2 M;
    - a feed-forward layer: M F + F, then F M + M: together 2 M F + F + M;
    - in an MoE layer E of those, and the gate M E, which has no bias.

    Raises:
        ValueError: if the experts cannot be shared out evenly.
    """
    if expert_parallel_size < 1 or config.num_experts % expert_parallel_size:
        raise ValueError(
            f"expert_parallel_size is {expert_parallel_size};"
            f" expected a divisor of num_experts = {config.num_experts}"
        )
    width, hidden = config.hidden_size, config.ffn_size
    local_experts = config.num_experts // expert_parallel_size
    moe_layers = len(config.moe_layers)
    dense_layers = config.num_layers - moe_layers
    feed_forward = 2 * width * hidden + hidden + width
    embeddings = (config.vocab_size + config.sequence_length) * width
    layer = (4 * width * width + 4 * width) + 4 * width
    moe = local_experts * feed_forward + width * config.num_experts
    return (
        embeddings
        + config.num_layers * layer
        + dense_layers * feed_forward
        + moe_layers * moe
        + 2 * width
    )
