"""The command started by torchrun and by mpirun on hosts of network namespaces: a real launch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cluster_runs import (
    COMMAND,
    END_SECONDS,
    FRONT_DOOR,
    MARK,
    START_SECONDS,
    TOLERANCE,
    environment,
    failure,
    iterations,
    last_record,
    words,
)

from dsmoe.hosts.spaces import guardian
from dsmoe.hosts.spaces.namespace_cluster import HostCluster

LONG = ["--steps", "100000"]
# n1, where rank 0 is
HEAD = "10.77.0.1"


class Torchrun:
    """An agent of torchrun on each of two hosts, with ``each`` processes of the command."""

    def __init__(
        self, hosts: HostCluster, folder: Path, each: int, output: str, *more: str
    ) -> None:
        self.hosts, self.output = hosts, folder / output
        processes = int(more[0]) if more and more[0].isdigit() else 2 * each
        options = words(processes, "--output", output, *more[more[:1] == (str(processes),) :])
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        torchrun += ["--nproc-per-node", str(each), "--master-addr", HEAD, "--master-port", "29511"]
        self.agents = {
            host: hosts.start(
                host,
                [*torchrun, "--node-rank", str(rank), *COMMAND[1:], *options],
                cwd=folder,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for rank, host in enumerate(("n1", "n2"))
        }

    def wait_for_iterations(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while iterations(self.output) < 1:
            for agent in self.agents.values():
                assert agent.poll() is None, agent.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def pids(self, host: str, word: str) -> list[int]:
        return [p for p, line in guardian.processes(self.hosts.space(host)) if word in line]

    def end(self, seconds: float = START_SECONDS) -> tuple[str, list[int]]:
        """What both agents said, and their exit codes."""
        deadline = time.monotonic() + seconds
        try:
            said = [
                a.communicate(timeout=deadline - time.monotonic())[0] for a in self.agents.values()
            ]
        finally:
            for agent in self.agents.values():
                agent.kill()
        return "\n".join(said), [agent.returncode for agent in self.agents.values()]

    def end_after(self, failed: float) -> tuple[str, list[int]]:
        """As ``end``; no training process may run END_SECONDS after the moment ``failed``."""
        while any(self.pids(host, MARK) for host in self.agents):
            assert time.monotonic() - failed < END_SECONDS
            time.sleep(0.2)
        return self.end(2 * END_SECONDS)


@pytest.mark.long
def test_torchrun_trains_as_one_host_does(
    hosts: HostCluster, folder: Path, on_one_host: list[float]
) -> None:
    """2 x 1: auto takes it, and what the command ends with is what torchrun ends with."""
    said, codes = Torchrun(hosts, folder, 1, "torchrun").end()
    assert codes == [0, 0], said
    record = last_record(folder / "torchrun")
    assert (record.num_hosts, record.num_devices_per_host) == (2, 1)
    assert record.losses == pytest.approx(on_one_host, rel=1e-6)
    # one of the processes leads, and it alone speaks
    assert said.count("== launcher torchrun: 2 processes by torchrun") == 1
    log = next((folder / "torchrun").glob("runs/*/log.txt")).read_text()
    assert "n2: " in log


@pytest.mark.slow
def test_four_processes_by_torchrun(
    hosts: HostCluster, folder: Path, on_one_host: list[float]
) -> None:
    said, codes = Torchrun(hosts, folder, 2, "torchrun4").end()
    assert codes == [0, 0], said
    record = last_record(folder / "torchrun4")
    assert (record.num_hosts, record.num_devices_per_host) == (2, 2)
    assert record.losses == pytest.approx(on_one_host, rel=TOLERANCE)


@pytest.mark.slow
def test_another_number_of_processes_is_refused(hosts: HostCluster, folder: Path) -> None:
    said, codes = Torchrun(hosts, folder, 1, "other", "4").end()
    assert codes == [1, 1], said  # torchrun's own, for a process that failed
    assert said.count("error: found 2 processes, started by torchrun; expected 4") == 1, said
    assert not (folder / "other").exists()


@pytest.mark.slow
def test_a_killed_training_process(hosts: HostCluster, folder: Path) -> None:
    run = Torchrun(hosts, folder, 1, "torchrun-killed", *LONG)
    run.wait_for_iterations()
    failed = time.monotonic()
    os.kill(run.pids("n2", MARK)[0], signal.SIGKILL)
    said, codes = run.end_after(failed)
    assert 0 not in codes
    assert failure(run.output).startswith("training process 1 was killed by signal 9"), said


@pytest.mark.slow
def test_a_killed_command_beside_the_leading_one(hosts: HostCluster, folder: Path) -> None:
    run = Torchrun(hosts, folder, 1, "torchrun-command", *LONG)
    run.wait_for_iterations()
    [command] = set(run.pids("n2", FRONT_DOOR)) - {run.agents["n2"].pid}
    failed = time.monotonic()
    os.kill(command, signal.SIGKILL)
    said, codes = run.end_after(failed)
    assert 0 not in codes
    assert failure(run.output).startswith("host n2: rank 1: its keeper has ended"), said


@pytest.mark.slow
def test_a_host_of_torchrun_is_cut_off(hosts: HostCluster, folder: Path) -> None:
    run = Torchrun(hosts, folder, 1, "torchrun-cut", *LONG)
    run.wait_for_iterations()
    hosts.plug("n2", "down")
    failed = time.monotonic()
    said, codes = run.end_after(failed)
    assert 0 not in codes
    assert failure(run.output).startswith("host n2: rank 1: no message for "), said


@pytest.mark.slow
def test_ctrl_c_at_torchrun(hosts: HostCluster, folder: Path) -> None:
    run = Torchrun(hosts, folder, 1, "torchrun-interrupted", *LONG)
    run.wait_for_iterations()
    failed = time.monotonic()
    os.kill(run.agents["n1"].pid, signal.SIGINT)
    said, codes = run.end_after(failed)
    assert 0 not in codes
    assert "SIG" in failure(run.output), said


@pytest.mark.slow
def test_mpirun_trains_as_one_host_does(
    hosts: HostCluster, folder: Path, on_one_host: list[float]
) -> None:
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed (scripts/install-test-tools.sh)")
    mpirun = ["mpirun", "--allow-run-as-root", "-np", "2", "--host", "n1:1,n2:1"]
    mpirun += ["--map-by", "ppr:1:node", "-x", f"MASTER_ADDR={HEAD}", "-x", "MASTER_PORT=29512"]
    mpirun += ["-x", "PATH", "-x", "PYTHONPATH", "--mca", "btl_tcp_if_include", "eth0"]
    command = [*mpirun, *COMMAND, *words(2, "--output", "mpirun")]
    done = hosts.run("n1", command, cwd=folder, env=environment(), timeout=START_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== launcher torchrun: 2 processes by Open MPI" in done.stdout
    record = last_record(folder / "mpirun")
    assert (record.num_hosts, record.num_devices_per_host) == (2, 1)
    assert record.losses == pytest.approx(on_one_host, rel=1e-6)
