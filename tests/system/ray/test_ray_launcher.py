"""``--launcher ray``: a real Ray of two nodes, each on a host of network namespaces.

``make test-ray`` runs these, in an environment that has Ray.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator

import pytest
from support.cluster_runs import (
    COMMAND,
    END_SECONDS,
    MARK,
    START_SECONDS,
    TOLERANCE,
    environment,
    failure,
    iterations,
    last_record,
    words,
)

from dsmoe.common.errors import EnvironmentProblem
from dsmoe.hosts.sources import ray, ray_client
from dsmoe.hosts.spaces import guardian
from dsmoe.hosts.spaces.namespace_cluster import HostCluster, unavailable

HEAD = "10.77.0.1"
ADDRESS = f"{HEAD}:6399"
KEEPER = "kept/keeper_process.py"
LONG = ["--steps", "100000"]
HOSTS = ("n1", "n2")


class RayOnHosts:
    """A head on n1 and a node on n2, each with two CPUs for Ray to give away."""

    def __init__(self, cluster: HostCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        # sockets have short names only
        self._place = tempfile.TemporaryDirectory(prefix="ray")
        self.nodes: dict[str, subprocess.Popen[str]] = {}
        head = ["--head", f"--port={ADDRESS.split(':')[1]}", "--include-dashboard=false"]
        self.start("n1", *head, f"--temp-dir={self._place.name}")
        self.start("n2", f"--address={ADDRESS}")

    def start(self, host: str, *options: str) -> None:
        """``ray start`` on a host, and wait until the cluster has that node."""
        own = f"--node-ip-address={self.cluster.address(host)}"
        more = ["--block", "--num-cpus=2", "--disable-usage-stats", own]
        # a machine under load takes longer than the 30 s that Ray allows
        own_environment = {**environment(), "RAY_raylet_start_wait_time_s": str(START_SECONDS)}
        path = self.folder / f"ray.{host}.log"
        with path.open("wb") as log:
            self.nodes[host] = self.cluster.start(
                host,
                [self.program, "start", *more, *options],
                env=own_environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while f'"alive": true, "address": "{self.cluster.address(host)}"' not in self.answer():
            assert self.nodes[host].poll() is None and time.monotonic() < deadline, path.read_text()
            time.sleep(0.5)

    def answer(self) -> str:
        """What the project's own client of Ray says of the nodes."""
        client = [sys.executable, str(Path(ray.__file__).with_name("ray_client.py")), ADDRESS]
        try:
            return self.cluster.run("n1", client, env=environment(), timeout=60).stdout
        except subprocess.TimeoutExpired:
            return ""

    def free(self) -> list[float]:
        """CPUs that are free on each live node, as the project's client says."""
        lines = [text for text in self.answer().splitlines() if text.startswith(ray_client.MARK)]
        rows = json.loads(lines[-1][len(ray_client.MARK) :])["nodes"] if lines else []
        return [row["free"]["cpus"] for row in rows if row["alive"]]

    @property
    def program(self) -> str:
        return str(Path(sys.executable).with_name("ray"))

    def close(self) -> None:
        for node in self.nodes.values():
            node.terminate()
        for node in self.nodes.values():
            node.wait(timeout=30)
        self._place.cleanup()


@pytest.fixture(scope="module")
def cluster() -> Iterator[HostCluster]:
    """Two hosts without ssh: nothing here may need it."""
    if not ray.installed():
        pytest.skip("ray is not installed here (make test-ray)")
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    try:
        made = HostCluster(2, with_ssh=False)
    except EnvironmentProblem as error:  # other tests of this process have theirs
        pytest.skip(f"{error} (make test-ray)")
    yield made
    made.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ray")
    (made / "text.txt").write_text("All work and no play makes Jack a dull boy.\n" * 400)
    return made


@pytest.fixture(scope="module")
def running(cluster: HostCluster, folder: Path) -> Iterator[RayOnHosts]:
    made = RayOnHosts(cluster, folder)
    yield made
    made.close()


class Started:
    """``dsmoe run`` on n1, with RAY_ADDRESS set."""

    def __init__(self, running: RayOnHosts, processes: int, output: str, *more: str) -> None:
        self.cluster, self.output = running.cluster, running.folder / output
        self.process = self.cluster.start(
            "n1",
            [*COMMAND, *words(processes, "--output", output, *more)],
            cwd=running.folder,
            env={**environment(), "RAY_ADDRESS": ADDRESS},
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
        return [p for p, line in guardian.processes(self.cluster.space(host)) if word in line]

    def end(self, failed: float | None = None) -> str:
        """What it said; nothing of it may run END_SECONDS after the moment ``failed``."""
        try:
            said, _ = self.process.communicate(timeout=START_SECONDS)
            if failed is not None:
                while any(self.pids(host, word) for host in HOSTS for word in (MARK, KEEPER)):
                    assert time.monotonic() - failed < END_SECONDS, said
                    time.sleep(0.2)
        finally:
            self.process.kill()
        assert "Traceback" not in said
        return str(said)


@pytest.fixture(scope="module")
def on_one_host(cluster: HostCluster, folder: Path) -> list[float]:
    """Losses of two processes on one host, by DeepSpeed's launcher."""
    command = [*COMMAND, *words(2, "--output", "one", "--launcher", "local")]
    done = cluster.run("n1", command, cwd=folder, env=environment(), timeout=START_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return last_record(folder / "one").losses


def hold(running: RayOnHosts, cpus: int) -> subprocess.Popen[str]:
    """A job that holds ``cpus`` CPUs on each node until its input ends."""
    code = (
        "import ray, sys\n"
        f"ray.init(address={ADDRESS!r}, log_to_driver=False)\n"
        f"group = ray.util.placement_group([{{'CPU': {cpus}}}] * 2, strategy='STRICT_SPREAD')\n"
        "ray.get(group.ready()); print('held', flush=True); sys.stdin.read()\n"
    )
    started = running.cluster.start(
        "n1",
        [sys.executable, "-c", code],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert started.stdout is not None and started.stdout.readline() == "held\n"
    # the control store learns it from each node, some time later
    deadline = time.monotonic() + START_SECONDS
    while running.free() != [2.0 - cpus] * 2:
        assert time.monotonic() < deadline, running.answer()
        time.sleep(0.5)
    return started


def test_what_another_job_holds_is_not_free(running: RayOnHosts, on_one_host: list[float]) -> None:
    """Another job holds a CPU of each node: four processes are refused, two run as 2 x 1."""
    other = hold(running, 1)
    refused = Started(running, 4, "few")
    said = refused.end()
    assert refused.process.returncode == 2, said
    assert "found 10.77.0.1 1 of 2, 10.77.0.2 1 of 2: end what holds them (ray status)" in said
    assert not refused.output.exists()
    run = Started(running, 2, "two")
    said = run.end()
    other.communicate("")
    assert run.process.returncode == 0, said
    assert f"== launcher ray: RAY_ADDRESS is {ADDRESS}" in said
    record = last_record(run.output)
    assert (record.num_hosts, record.num_devices_per_host) == (2, 1)
    assert record.losses == pytest.approx(on_one_host, rel=1e-6)
    assert "n2: " in next(run.output.glob("runs/*/log.txt")).read_text()


@pytest.mark.slow
def test_four_processes_on_two_nodes(running: RayOnHosts, on_one_host: list[float]) -> None:
    """2 x 2; two processes alone are packed on one host."""
    run = Started(running, 4, "four")
    said = run.end()
    record = last_record(run.output)
    assert (record.num_hosts, record.num_devices_per_host) == (2, 2), said
    assert record.losses == pytest.approx(on_one_host, rel=TOLERANCE)
    options = ["--suite", "smoke", "--dry-run", "--launcher", "ray"]
    command = [sys.executable, "-m", "dsmoe", "run", "2", *options]
    own = {**environment(), "RAY_ADDRESS": ADDRESS}
    plan = running.cluster.run("n1", command, cwd=running.folder, env=own)
    assert plan.stdout.endswith("# a placement group of 2 CPUs on each of: 10.77.0.1\n"), plan


def test_a_killed_process_is_named(running: RayOnHosts) -> None:
    run = Started(running, 4, "killed", *LONG)
    run.wait_for_iterations()
    failed = time.monotonic()
    os.kill(run.pids("n2", MARK)[0], signal.SIGKILL)
    said = run.end(failed)
    assert run.process.returncode == 1, said
    assert " was killed by signal 9 (SIGKILL)" in failure(run.output), said


def test_the_death_of_an_actor_is_told(running: RayOnHosts) -> None:
    run = Started(running, 4, "actor", *LONG)
    run.wait_for_iterations()
    [actor] = run.pids("n2", "ray::Keepers")
    failed = time.monotonic()
    os.kill(actor, signal.SIGKILL)
    said = run.end(failed)
    reason = failure(run.output)
    assert run.process.returncode == 1, said
    # Ray may end the keepers with their actor, and either is seen first.
    assert reason.startswith(("host 10.77.0.2: Ray: ", "host n2: rank ")), said


@pytest.mark.slow
def test_ctrl_c_leaves_a_row(running: RayOnHosts) -> None:
    run = Started(running, 4, "interrupted", *LONG)
    run.wait_for_iterations()
    failed = time.monotonic()
    os.kill(run.process.pid, signal.SIGINT)
    said = run.end(failed)
    assert run.process.returncode == 130, said
    assert failure(run.output).startswith("interrupted by SIGINT")


@pytest.mark.slow
def test_the_check_asks_the_nodes_through_ray(running: RayOnHosts) -> None:
    command = [sys.executable, "-m", "dsmoe", "check", "--launcher", "ray"]
    own = {**environment(), "RAY_ADDRESS": ADDRESS}
    done = running.cluster.run("n1", command, cwd=running.folder, env=own, timeout=START_SECONDS)
    for host in ("10.77.0.1", "10.77.0.2"):
        for what in ("reached by Ray", "Python", "torch", "patched DeepSpeed", "clock"):
            assert f"[ ok ] {host}: {what} " in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_host_is_cut_off(running: RayOnHosts) -> None:
    run = Started(running, 4, "cut", *LONG)
    run.wait_for_iterations()
    running.cluster.plug("n2", "down")
    failed = time.monotonic()
    said = run.end(failed)
    running.cluster.plug("n2", "up")
    assert run.process.returncode == 1, said
    assert failure(run.output).startswith("host n2: rank 2: no message for "), said


@pytest.mark.slow
def test_ray_stop_leaves_a_row(running: RayOnHosts) -> None:
    """The last test: it stops the cluster's own processes, which --block has as children."""
    run = Started(running, 2, "stopped", *LONG)
    run.wait_for_iterations()
    failed = time.monotonic()
    for node in running.nodes.values():
        node.send_signal(signal.SIGTERM)
    said = run.end(failed)
    assert run.process.returncode == 1, said
    assert failure(run.output), said
