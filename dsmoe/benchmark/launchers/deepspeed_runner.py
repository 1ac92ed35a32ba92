"""DeepSpeed's own launcher: the processes of this machine, or of a host file's hosts by ssh."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Iterator

from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.preflight.asking import Way, ssh_way
from dsmoe.benchmark.preflight.probe import cores
from dsmoe.benchmark.run.layout import Layout, lay_out
from dsmoe.benchmark.run.processes import Output, Started, own_session
from dsmoe.benchmark.run.reasons import reason
from dsmoe.common.errors import EnvironmentProblem
from dsmoe.common.places import LAUNCHER
from dsmoe.common.typed import program
from dsmoe.hosts.host import Host
from dsmoe.hosts.hostfile import read_hostfile
from dsmoe.hosts.identity import is_this_machine

LOCALHOST = "127.0.0.1"


def free_port() -> int:
    """A port of this machine that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return int(probe.getsockname()[1])


class DeepSpeedLauncher:
    """``ssh`` with a host file, ``local`` without."""

    ends_with_processes = False

    def __init__(self, hostfile: Path | None = None) -> None:
        self.hostfile = hostfile
        self.name = "ssh" if hostfile else "local"

    def lay_out(self, processes: int) -> Layout:
        return lay_out(self.hostfile, processes)

    def check(self, job: Job) -> None:
        """Raises EnvironmentProblem where the launcher is not there."""
        launcher = job.checkout / LAUNCHER
        if not launcher.is_file():
            raise EnvironmentProblem(
                f"{launcher}: no such file; expected DeepSpeed's launcher: run "
                f"{program('apply')} {shlex.quote(str(job.checkout))}"
            )

    @contextlib.contextmanager
    def start(self, job: Job, log: Path) -> Iterator[Started]:
        environment = {**os.environ, **self.added_environment(job)}
        with own_session(self.command(job), environment, log) as started:
            yield started

    def reason(self, code: int, output: Output, log: Path) -> str:
        return reason(code, output.marks, output.tail, log)

    def command(self, job: Job) -> list[str]:
        """The launcher's command line, a list that no shell reads: that of bin/ds without what it
        imports and does not need.

        Without a host file it is given /dev/null, so that it never picks up /job/hostfile, its
        own default.
        """
        hostfile = job.layout.hostfile
        master = job.master or (None if hostfile else LOCALHOST)
        return [
            sys.executable,
            str(job.checkout / LAUNCHER),
            "runner",
            "--hostfile",
            str(hostfile or os.devnull),
            *(["--num_nodes", str(job.layout.hosts)] if hostfile else []),
            "--num_gpus",
            str(job.layout.devices),
            *(["--master_addr", master] if master else []),
            "--master_port",
            str(job.port or free_port()),
            *job.words(),
        ]

    def added_environment(self, job: Job) -> dict[str, str]:
        """The variables that are set beside those of this process."""
        added = job.environment()
        if job.gpus is not None and job.layout.hostfile is None:
            added["DSMOE_DEVICES"] = str(job.gpus)
        if "OMP_NUM_THREADS" not in os.environ:
            added["OMP_NUM_THREADS"] = str(max(1, cores() // job.layout.devices))
        if "OMP_WAIT_POLICY" not in os.environ:
            # A thread that waits in a loop takes a core that other work may need: an iteration on
            # two cores with four other programs took 0.67 s, with this 0.32 s.
            added["OMP_WAIT_POLICY"] = "passive"
        if (
            job.layout.hostfile is None
            and "GLOO_SOCKET_IFNAME" not in os.environ
            and "lo" in (name for _, name in socket.if_nameindex())
        ):
            # gloo looks up this machine's name, which need not resolve to an address of its own.
            added["GLOO_SOCKET_IFNAME"] = "lo"
        return added

    def line(self, job: Job) -> str:
        """The command as a line for a POSIX shell, every word quoted."""
        added = self.added_environment(job)
        named = [f"{name}={shlex.quote(text)}" for name, text in added.items()]
        return " ".join([*named, *map(shlex.quote, self.command(job))])

    def hosts(self) -> list[Host]:
        return read_hostfile(self.hostfile) if self.hostfile else []

    def way(self) -> Way | None:
        return ssh_way(self.hostfile) if self.hostfile else None

    def distant_head(self, layout: Layout) -> str | None:
        name = layout.names[0]
        return None if layout.hostfile is None or is_this_machine(name) else name

    def close(self, code: int) -> None:
        """Nothing is held."""


LOCAL = DeepSpeedLauncher()
