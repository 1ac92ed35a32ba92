"""Which kernels a training process may use: the choice in the environment, checked early."""

from __future__ import annotations

from typing import Mapping

from dsmoe.common.errors import UsageError
from dsmoe.common.overlay_modules import kernel_choices

VARIABLE = str(kernel_choices().VARIABLE)


def check_kernels(environment: Mapping[str, str]) -> None:
    """Raises UsageError for a choice that the training processes would refuse."""
    allowed_kernels(environment)


def allowed_kernels(environment: Mapping[str, str]) -> str:
    """The choice of DSMOE_KERNELS. Raises UsageError for one that is none."""
    try:
        return str(kernel_choices().chosen(environment))
    except ValueError as error:
        raise UsageError(str(error)) from None
