"""The values of ``DSMOE_KERNELS``: how many of the optional kernels a run may use.

Imports nothing outside the standard library: dsmoe loads this file by its path
(``dsmoe.common.overlay_modules``) and checks the variable before any process imports torch.
"""

from __future__ import annotations

from typing import Mapping

VARIABLE = "DSMOE_KERNELS"
CHOICES = {
    "all": "every kernel that this GPU and the installed packages have",
    "nccl": "the same, with every message between GPUs by NCCL",
    "cublas": "also without quack-kernels and flash-attn-4",
    "torch": "also without cuBLASLt's products; the loss, AdaFactor and sums of gradients keep "
    "their Triton kernels",
}
DEFAULT = "all"


def chosen(environment: Mapping[str, str]) -> str:
    """The choice that ``environment`` names; unset or empty means :data:`DEFAULT`.

    Raises:
        ValueError: for a value that is not in :data:`CHOICES`.
    """
    choice = environment.get(VARIABLE) or DEFAULT
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE}={choice!a}; expected one of {', '.join(CHOICES)}")
    return choice
