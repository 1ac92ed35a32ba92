"""The hosts that the tests of this folder share: made once, of network namespaces."""

from __future__ import annotations

from typing import Iterator

import pytest

from dsmoe.hosts.spaces import ssh
from dsmoe.hosts.spaces.cluster import Cluster, unavailable


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four hosts, n1 to n4; skipped where they cannot be made, with the reason."""
    reason = unavailable(ssh.TOOLS)
    if reason:
        pytest.skip(reason)
    made = Cluster(4)
    yield made
    made.close()


@pytest.fixture
def hosts(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with every cable in its place, before and after."""
    yield cluster
    for host in cluster.names:
        cluster.plug(host, "up")
