"""The one interface of all launchers: where, start, watch, end, reason."""

from __future__ import annotations

from pathlib import Path
from typing import ContextManager, Protocol

from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.preflight.asking import Way
from dsmoe.benchmark.run.layout import Layout
from dsmoe.benchmark.run.processes import Output
from dsmoe.hosts.host import Host


class Running(Protocol):
    """Training processes at work: ``output`` is what they and their launcher print."""

    @property
    def output(self) -> Output: ...

    def poll(self) -> int | None:
        """None while they run, else 0 if all ended well. Never waits."""


class Launcher(Protocol):
    """Starts a job's processes on the hosts of a layout."""

    #: As the option ``--launcher`` has it.
    name: str
    #: Whether this command is itself ended by what started it, as soon as a process fails.
    ends_with_processes: bool

    def lay_out(self, processes: int) -> Layout:
        """The hosts for so many processes. Raises DsmoeError where there are too few."""

    def check(self, job: Job) -> None:
        """Raises EnvironmentProblem where the job cannot be started."""

    def start(self, job: Job, log: Path) -> ContextManager[Running]:
        """The processes, for the length of the block: at its end none of them is left.

        Their output goes to the file ``log`` too.
        """

    def reason(self, code: int, output: Output, log: Path) -> str:
        """Why they failed, in one line; ``code`` is what ``poll`` said."""

    def line(self, job: Job) -> str:
        """The command that ``start`` runs, quoted for a shell."""

    def hosts(self) -> list[Host]:
        """All hosts that it could take."""

    def way(self) -> Way | None:
        """How these hosts are asked what they have; None: there is only this machine."""

    def distant_head(self, layout: Layout) -> str | None:
        """The first host's name, if that is another machine than this one."""

    def close(self, code: int) -> None:
        """The command ends with ``code``: what is still held is given back."""
