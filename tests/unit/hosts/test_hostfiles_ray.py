"""Hosts from Ray: a real cluster of two raylets on loopback addresses, and addresses that fail."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from support import ROOT

from dsmoe.common.errors import HostGone, SourceProblem
from dsmoe.hosts.sources import ray, ray_client

SCRIPT = ROOT / "get_hostfiles.py"
needs_ray = pytest.mark.skipif(not ray.installed(), reason="ray is not installed here")

# Soon sure that a killed raylet is dead: Ray's own settings take 16 s.
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray head with four pretended GPUs, stopped (its own processes alone) afterwards."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "num_gpus": 4, "include_dashboard": False, "_system_config": QUICK}
    running = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield running
    finally:
        running.shutdown()


def _run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RAY_"))}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=100,
    )


@needs_ray
@pytest.mark.timeout(600)
def test_a_real_cluster(cluster: Any, tmp_path: Path) -> None:
    from ray.util import get_node_ip_address

    here = get_node_ip_address()
    second = cluster.add_node(num_cpus=1, num_gpus=4, node_ip_address="127.0.0.3")
    cluster.add_node(num_cpus=1, num_gpus=0, node_ip_address="127.0.0.2")

    # RAY_ADDRESS is enough; the head comes first though 127.0.0.3 sorts before it; the node
    # without GPUs is left out and named.
    done = _run(tmp_path, "--json", RAY_ADDRESS=cluster.address)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert (report["source"], report["device"]) == ("ray", "gpu")
    assert any("127.0.0.2 has no GPU" in warning for warning in report["warnings"])
    want = f"{here} slots=4\n127.0.0.3 slots=4\n"
    assert (tmp_path / "hostfile").read_text() == want
    assert (tmp_path / "hostfile_2node").read_text() == want
    assert (tmp_path / "hostfile_1node").read_text() == f"{here} slots=4\n"

    found = ray.find(cluster.address, 120, "test", any_device=False)
    try:
        found.recheck()
        # Two raylets at one address cannot be two hosts (here, or after a restart).
        twin = cluster.add_node(num_cpus=1, num_gpus=2, node_ip_address="127.0.0.3")
        done = _run(tmp_path, "--slots", "1", RAY_ADDRESS=cluster.address)
        assert done.returncode == 16 and "2 live Ray nodes at 127.0.0.3" in done.stderr
        assert done.stderr.count("\n") == 1
        found.recheck()
        cluster.remove_node(twin)

        # Killed, not stopped: the node vanishes between the listing and the writing.
        cluster.remove_node(second, allow_graceful=False)
        end = time.monotonic() + 120
        with pytest.raises(HostGone, match=r"127\.0\.0\.3 left"):
            while time.monotonic() < end:
                found.recheck()
                time.sleep(0.1)
    finally:
        found.close()
    assert (tmp_path / "hostfile").read_text() == want

    # A new run no longer lists it, and the file for two hosts goes.
    done = _run(tmp_path, "--from", "ray", "--ray-address", cluster.address)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "hostfile").read_text() == f"{here} slots=4\n"
    assert not (tmp_path / "hostfile_2node").exists()


@needs_ray
@pytest.mark.timeout(300)
def test_auto_never_starts_a_cluster(tmp_path: Path) -> None:
    # A folder of its own for Ray's state, so that no other cluster of this machine is found.
    env = {"RAY_TMPDIR": str(tmp_path)}
    forced = _run(tmp_path, "--from", "ray", **env)
    if forced.returncode == 0:
        pytest.skip("a Ray cluster runs on this machine")
    assert forced.returncode == 17 and "no running Ray cluster" in forced.stderr
    assert forced.stderr.count("\n") == 1
    automatic = _run(tmp_path, "--dry-run", "--json", **env)
    assert automatic.returncode == 0, automatic.stderr
    report = json.loads(automatic.stdout)
    assert report["source"] == "local" and "no running Ray cluster" in report["reason"]
    refused = _run(tmp_path, RAY_ADDRESS="local", **env)
    assert refused.returncode == 17 and "starts a new cluster" in refused.stderr


@needs_ray
def test_addresses_that_refuse_or_hang() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(SourceProblem, match="no connection to Ray"):
            ray.find(address, 5, "test", any_device=False)
        # Listens, and never answers: Ray alone would wait for minutes.
        server.listen()
        start = time.monotonic()
        with pytest.raises(SourceProblem, match=r"did not answer within 2 s"):
            ray.find(address, 2, "test", any_device=False)
        assert time.monotonic() - start < 60


# Prints as Ray does when a node dies: between answers, from C and from Python, without a line end.
CHATTY = """
import os

class Here:
    gcs_address = "10.0.0.1:6379"

def init(**options):
    os.write(1, b"(raylet) started\\n(autoscaler")

def get_runtime_context():
    return Here

def nodes():
    os.write(1, b"(raylet) The node has been marked dead. Last 20 lines of the log:")
    print("more", flush=True)
    return [{"NodeID": "one", "Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {}}]

def shutdown():
    print("bye")
"""


def test_what_ray_prints_is_not_in_an_answer(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text(CHATTY)
    done = subprocess.run(
        [sys.executable, str(Path(ray_client.__file__)), "10.0.0.1:6379"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        input="\n\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and "marked dead" in done.stderr
    for line in lines:
        assert line.startswith(ray_client.MARK)
        assert json.loads(line[len(ray_client.MARK) :])["nodes"][0]["address"] == "10.0.0.1"


def test_without_ray(tmp_path: Path) -> None:
    if ray.installed():
        pytest.skip("ray is installed here")
    done = _run(tmp_path, "--from", "ray")
    assert done.returncode == 17 and "pip install ray" in done.stderr
    assert done.stderr.count("\n") == 1
