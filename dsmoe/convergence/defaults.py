"""The sizes of the comparison where no option names others, by device."""

from __future__ import annotations

from typing import Any

# The learning rate rises over this share of the steps.
RATE_WARMUP = 0.05

# Forty to sixty seconds an arm on one H100 with 300 steps, one to two minutes on two CPU cores.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cuda": {
        "hidden_size": 512,
        "num_layers": 8,
        "num_heads": 8,
        "sequence_length": 512,
        "num_experts": 8,
        "global_batch_size": 128,
        "micro_batch_size": 64,
        "steps": 600,
        "eval_every": 25,
        "eval_windows": 512,
        "learning_rate": 1e-2,
        "precision": "bf16",
    },
    "cpu": {
        "hidden_size": 64,
        "num_layers": 4,
        "num_heads": 4,
        "sequence_length": 128,
        "num_experts": 8,
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "steps": 300,
        "eval_every": 20,
        "eval_windows": 128,
        "learning_rate": 3e-2,
        "precision": "fp32",
    },
}
