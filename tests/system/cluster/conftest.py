"""The hosts that the tests of this folder share: made once a process, of network namespaces."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

import pytest
from support import ROOT
from support.cluster_runs import clean, trained

from dsmoe.hosts.spaces import ssh
from dsmoe.hosts.spaces.namespace_cluster import HostCluster, unavailable
from dsmoe.hosts.spaces.ssh import PORT


@pytest.fixture(scope="session")
def cluster() -> Iterator[HostCluster]:
    """Four hosts, n1 to n4; skipped where they cannot be made, with the reason."""
    reason = unavailable(ssh.TOOLS)
    if reason:
        pytest.skip(reason)
    made = HostCluster(4)
    yield made
    made.close()


@pytest.fixture
def hosts(cluster: HostCluster) -> Iterator[HostCluster]:
    """The cluster with every cable in its place, before and after."""
    yield cluster
    for host in cluster.names:
        cluster.plug(host, "up")


@pytest.fixture(scope="session")
def folder(cluster: HostCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the host files that get_hostfiles.py writes on n1, and a short text."""
    made = tmp_path_factory.mktemp("hosts")
    (made / "text.txt").write_text("All work and no play makes Jack a dull boy.\n" * 400)
    script = str(ROOT / "get_hostfiles.py")
    names = ",".join(f"{name}:1" for name in cluster.names)
    words = [sys.executable, script, "--hosts", names, "--probe", str(PORT)]
    done = clean(cluster, *words, folder=made)
    assert done.returncode == 0, done.stderr
    assert (made / "hostfile_2node").read_text() == "n1 slots=1\nn2 slots=1\n"
    return made


@pytest.fixture(scope="session")
def on_one_host(cluster: HostCluster, folder: Path) -> list[float]:
    """Losses of two processes on one host."""
    return trained(cluster, folder, 2, 1, "--output", "one", "--launcher", "local")
