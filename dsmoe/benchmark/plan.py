"""--plan."""

from dsmoe.errors import UsageError


def print_plans(options) -> int:
    raise UsageError("--plan is not ready yet")
