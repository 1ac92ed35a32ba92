"""Which kernels a training process may use: the variable, and its choices."""

from __future__ import annotations

from typing import Mapping

from dsmoe.common.errors import UsageError

# As in deepspeed/moe/kernels/policy.py, which needs torch; a test compares the two.
VARIABLE = "DSMOE_KERNELS"
CHOICES = ("all", "nccl", "cublas", "torch")


def check_kernels(environment: Mapping[str, str]) -> None:
    """Raises UsageError for a choice that the training processes would refuse."""
    choice = environment.get(VARIABLE) or CHOICES[0]
    if choice not in CHOICES:
        raise UsageError(f"{VARIABLE}={choice!a}; expected one of {', '.join(CHOICES)}")
