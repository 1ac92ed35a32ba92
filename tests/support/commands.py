"""Commands as a user gives them, run in this process."""

from __future__ import annotations

from dsmoe import cli
from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.choice import chosen_cases
from dsmoe.benchmark.preflight.machine import Machine
from dsmoe.commands import options as shared
from dsmoe.commands import run

#: A machine without GPUs, whatever this one has.
NO_GPU = Machine("cpu", "cpu", {}, {})


def cases_of(*arguments: str, device: str = "cuda", memory: int | None = None) -> list[Case]:
    """The cases that ``dsmoe run ARGUMENTS`` trains on a machine with such a device."""
    options = run.make_parser("dsmoe run").parse_args(arguments)
    return chosen_cases(shared.wanted_of(options), device, memory)


def dsmoe(*arguments: object) -> int:
    """The exit code of ``dsmoe ARGUMENTS``."""
    return cli.main([str(word) for word in arguments])
