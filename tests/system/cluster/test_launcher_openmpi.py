"""``--launcher openmpi`` with a real mpirun over two hosts of network namespaces."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.launcher import lean_runner

from dsmoe.hosts.spaces.namespace_cluster import HostCluster

SCRIPT = """
import os, sys
import deepspeed, torch, torch.distributed as dist
deepspeed.init_distributed(dist_backend="gloo")
number = torch.tensor([2.0 ** dist.get_rank()])
dist.all_reduce(number)
rank = dist.get_rank()
said = f"rank {rank} of {dist.get_world_size()}: {number.item()} {sys.argv[1:]}\\n"
os.write(1, said.encode())
dist.destroy_process_group()  # gloo's threads may end the process badly if they outlive it
if sys.argv[2:] == ["fail"] and rank == 1:
    sys.exit(7)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for program in ("mpirun", "ompi_info"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (scripts/install-test-tools.sh)")
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed, by which DeepSpeed learns its ranks from MPI")
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=1\n")
    (tmp_path / "say.py").write_text(SCRIPT)
    return tmp_path


def launch(hosts: HostCluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    launcher = lean_runner("--hostfile", "hosts")
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return hosts.run(
        "n1",
        [*launcher, "--launcher", "openmpi", "say.py", *words],
        cwd=folder,
        env={**os.environ, **as_root, "GLOO_SOCKET_IFNAME": "eth0"},
        timeout=180,
    )


@pytest.mark.long
def test_two_hosts_meet(hosts: HostCluster, folder: Path) -> None:
    """Ranks from MPI, a sum over both hosts, and an argument that no shell has read."""
    word = f"a b;$(touch {folder}/planted)"
    done = launch(hosts, folder, word)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in (0, 1):
        assert f"rank {rank} of 2: 3.0 {[word]}" in done.stdout
    assert not (folder / "planted").exists()


@pytest.mark.long
def test_a_failed_host_is_a_failed_run(hosts: HostCluster, folder: Path) -> None:
    done = launch(hosts, folder, "word", "fail")
    assert done.returncode == 7, done.stdout + done.stderr
