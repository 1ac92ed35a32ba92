"""The hosts that the tests of this folder share: made once, of network namespaces."""

from __future__ import annotations

from typing import Iterator

import pytest
from support import namespaces


@pytest.fixture(scope="session")
def cluster() -> Iterator[namespaces.Cluster]:
    """Four hosts, n1 to n4; skipped where they cannot be made, with the reason."""
    reason = namespaces.unavailable()
    if reason:
        pytest.skip(reason)
    made = namespaces.Cluster(4)
    yield made
    made.close()


@pytest.fixture
def hosts(cluster: namespaces.Cluster) -> Iterator[namespaces.Cluster]:
    """The cluster with every cable in its place, before and after."""
    yield cluster
    for host in cluster.names:
        cluster.plug(host, "up")
