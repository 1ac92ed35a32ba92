"""The expected failures of the host-file commands and their exit codes."""

from __future__ import annotations

from dsmoe.errors import DsmoeError


class HostProblem(DsmoeError):
    """A list of hosts cannot be used: malformed, a host twice, no or unequal slot counts."""

    exit_code = 3


class SourceProblem(DsmoeError):
    """The source of hosts (Ray, Slurm) is missing, does not answer, or has no GPU to give."""

    exit_code = 4


class HostGone(DsmoeError):
    """A listed host died before the files were written, or does not answer the probe."""

    exit_code = 5
