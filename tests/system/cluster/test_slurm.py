"""``--launcher slurm`` in a real Slurm over hosts of network namespaces: no ssh, no host file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

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
from support.slurm_cluster import Slurm, missing

from dsmoe.hosts.spaces import guardian
from dsmoe.hosts.spaces.namespace_cluster import HostCluster

KEEPER = "kept/keeper_process.py"
LONG = ["--steps", "100000"]
NODES = ["--nodes=2", "--ntasks-per-node=1"]


@pytest.fixture(scope="module")
def slurm(cluster: HostCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Slurm with the nodes n1 and n2."""
    if missing():
        pytest.skip(f"not installed: {', '.join(missing())} (scripts/install-test-tools.sh)")
    made = Slurm(cluster, tmp_path_factory.mktemp("slurm"))
    yield made
    made.close()


class Allocated:
    """The benchmark in a job of its own, and what it says."""

    def __init__(
        self, slurm: Slurm, folder: Path, output: str, *more: str, job: list[str] | None = None
    ) -> None:
        self.slurm, self.output = slurm, folder / output
        command = [*COMMAND, *words(2, "--output", output, *more)]
        self.process = slurm.cluster.start(
            "n1",
            ["salloc", *(job or NODES), *command],
            cwd=folder,
            env={**environment(), **slurm.own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def wait_for_iterations(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while iterations(self.output) < 1:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def pids(self, host: str, word: str) -> list[int]:
        found = guardian.processes(self.slurm.cluster.space(host))
        return [pid for pid, line in found if word in line]

    def end(self, failed: float) -> str:
        """What it said; nothing of it may run END_SECONDS after the moment ``failed``."""
        try:
            said, _ = self.process.communicate(timeout=2 * END_SECONDS)
            while any(self.pids(host, word) for host in ("n1", "n2") for word in (MARK, KEEPER)):
                assert time.monotonic() - failed < END_SECONDS
                time.sleep(0.2)
        finally:
            self.process.kill()
        assert time.monotonic() - failed < END_SECONDS, said
        assert "Traceback" not in said
        return said


@pytest.mark.long
def test_a_printed_batch_script_trains_as_one_host_does(
    hosts: HostCluster, slurm: Slurm, folder: Path, on_one_host: list[float]
) -> None:
    """2 x 1 processes: the script of --print-sbatch, given to sbatch; the losses of one host."""
    asked = [*COMMAND, *words(2, "--output", "slurm", "--print-sbatch", "--per-host", "1")]
    script = hosts.run("n1", asked, cwd=folder, env=environment())
    assert script.returncode == 0 and "#SBATCH --nodes=2\n" in script.stdout, script.stderr
    (folder / "job.sh").write_text(script.stdout)
    done = slurm.run(["sbatch", "--wait", "job.sh"], cwd=folder, timeout=START_SECONDS)
    [log] = folder.glob("dsmoe-*.log")
    assert "Submitted" in done and "== launcher slurm: " in log.read_text(), log.read_text()
    record = last_record(folder / "slurm")
    assert (record.num_hosts, record.num_devices_per_host) == (2, 1), log.read_text()
    assert record.losses == pytest.approx(on_one_host, rel=1e-6)
    text = next((folder / "slurm").glob("runs/*/log.txt")).read_text()
    assert "n2: " in text and "deepspeed/launcher" not in text


@pytest.mark.long
def test_a_killed_process_is_named(hosts: HostCluster, slurm: Slurm, folder: Path) -> None:
    run = Allocated(slurm, folder, "killed", *LONG)
    run.wait_for_iterations()
    failed = time.monotonic()
    os.kill(run.pids("n2", MARK)[0], signal.SIGKILL)
    said = run.end(failed)
    assert run.process.returncode == 1, said
    assert failure(run.output).startswith("training process 1 was killed by signal 9"), said


def test_too_few_nodes_are_refused(hosts: HostCluster, slurm: Slurm, folder: Path) -> None:
    """One node of one process, where two are asked for: one line, and nothing is started."""
    run = Allocated(slurm, folder, "few", job=["--nodes=1", "--ntasks-per-node=1"])
    said, _ = run.process.communicate(timeout=START_SECONDS)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert run.process.returncode == 2 and len(errors) == 1, said
    assert "2 processes do not fill hosts of 1 slots each; job " in errors[0]
    assert "n1 slots=1: ask Slurm for them: salloc --nodes=2 --ntasks-per-node=1" in errors[0]
    assert not run.output.exists()


@pytest.mark.slow
def test_four_processes_on_two_nodes(
    hosts: HostCluster, slurm: Slurm, folder: Path, on_one_host: list[float]
) -> None:
    """2 x 2, in a job that counts GPUs."""
    command = [*COMMAND, *words(4, "--output", "four")]
    job = ["salloc", "--nodes=2", "--gpus-per-node=2"]
    variables = {**environment(), **slurm.own}
    done = hosts.run("n1", [*job, *command], cwd=folder, env=variables, timeout=START_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    record = last_record(folder / "four")
    assert (record.num_hosts, record.num_devices_per_host) == (2, 2)
    assert record.losses == pytest.approx(on_one_host, rel=TOLERANCE)


@pytest.mark.slow
def test_a_node_is_cut_off(hosts: HostCluster, slurm: Slurm, folder: Path) -> None:
    run = Allocated(slurm, folder, "cut", *LONG)
    run.wait_for_iterations()
    hosts.plug("n2", "down")
    failed = time.monotonic()
    said = run.end(failed)
    hosts.plug("n2", "up")
    assert run.process.returncode == 1, said
    assert failure(run.output).startswith("host n2: rank 1: no message for "), said
    slurm.settle()


@pytest.mark.slow
def test_scancel_leaves_a_row(hosts: HostCluster, slurm: Slurm, folder: Path) -> None:
    run = Allocated(slurm, folder, "cancelled", *LONG)
    run.wait_for_iterations()
    failed = time.monotonic()
    slurm.run(["scancel", "--user", "root"])
    said = run.end(failed)
    log = next(run.output.glob("runs/*/log.txt")).read_text()
    assert "CANCELLED" in failure(run.output), said + log[-3000:]
    slurm.settle()


@pytest.mark.slow
def test_the_time_limit_of_a_batch_job(hosts: HostCluster, slurm: Slurm, folder: Path) -> None:
    """The signal of the printed script comes before the limit; the run ends with its row."""
    asked = [*COMMAND, *words(2, "--output", "limit", *LONG, "--print-sbatch", "--per-host", "1")]
    script = hosts.run("n1", asked, cwd=folder, env=environment()).stdout
    (folder / "limit.sh").write_text(script)
    job = slurm.run(["sbatch", "--parsable", "--time=10", "limit.sh"], cwd=folder).strip()
    deadline = time.monotonic() + START_SECONDS
    while iterations(folder / "limit") < 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    # as the time limit's signal: to the batch script alone
    slurm.run(["scancel", "--batch", "--signal=TERM", job])
    slurm.settle()
    assert failure(folder / "limit") == "interrupted by SIGTERM"


@pytest.mark.slow
def test_ctrl_c_leaves_a_row(hosts: HostCluster, slurm: Slurm, folder: Path) -> None:
    run = Allocated(slurm, folder, "interrupted", *LONG)
    run.wait_for_iterations()
    [command] = run.pids("n1", FRONT_DOOR)[-1:]
    failed = time.monotonic()
    os.kill(command, signal.SIGINT)
    said = run.end(failed)
    assert run.process.returncode == 130, said
    assert failure(run.output).startswith("interrupted by SIGINT")


@pytest.mark.slow
def test_the_check_asks_the_nodes_through_srun(
    hosts: HostCluster, slurm: Slurm, folder: Path
) -> None:
    command = ["salloc", *NODES, sys.executable, "-m", "dsmoe", "check", "--launcher", "slurm"]
    variables = {**environment(), **slurm.own}
    done = hosts.run("n1", command, cwd=folder, env=variables, timeout=START_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    for host in ("n1", "n2"):
        for what in ("reached by srun", "Python", "torch", "patched DeepSpeed", "clock"):
            assert any(f"{host}: {what} " in line for line in done.stdout.splitlines()), what


@pytest.mark.slow
def test_a_killed_keeper_is_told(hosts: HostCluster, slurm: Slurm, folder: Path) -> None:
    run = Allocated(slurm, folder, "keeper", *LONG)
    run.wait_for_iterations()
    failed = time.monotonic()
    os.kill(run.pids("n2", KEEPER)[0], signal.SIGKILL)
    said = run.end(failed)
    assert run.process.returncode == 1, said
    assert failure(run.output).startswith("host n2: rank 1: its keeper has ended"), said


@pytest.mark.slow
def test_no_process_outlives_a_killed_command(
    hosts: HostCluster, slurm: Slurm, folder: Path
) -> None:
    run = Allocated(slurm, folder, "orphans", *LONG)
    run.wait_for_iterations()
    failed = time.monotonic()
    os.kill(run.pids("n1", FRONT_DOOR)[-1], signal.SIGKILL)
    run.end(failed)
    slurm.settle()


@pytest.mark.slow
def test_a_model_is_kept_and_planned_in_a_job(
    hosts: HostCluster, slurm: Slurm, folder: Path
) -> None:
    variables = {**environment(), **slurm.own}
    dsmoe = ["salloc", *NODES, sys.executable, "-m", "dsmoe"]
    kept = ["--steps", "2", "--save", "kept", "--data", "text.txt"]
    train = [*dsmoe, "train", "2", "--suite", "smoke", *kept]
    done = hosts.run("n1", train, cwd=folder, env=variables, timeout=START_SECONDS)
    assert done.returncode == 0 and "== launcher slurm: inside job " in done.stdout, done
    assert "checkpoint of iteration 2 in kept" in done.stdout
    # on nodes of one process the experts of suite smoke stay inside: one process each
    plan = [*dsmoe, "plan", "2", "--suite", "smoke", "--launcher", "slurm", "--json"]
    done = hosts.run("n1", plan, cwd=folder, env=variables, timeout=START_SECONDS)
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["case"]["parallel"]["expert_parallel_size"] == 1
