"""Lists of hosts that a host file can hold, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from dsmoe.hosts.host import Host

_ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
LABEL = st.builds(
    lambda first, middle, last: first + middle + last,
    st.sampled_from(_ALNUM),
    st.text(_ALNUM + "-", max_size=8),
    st.sampled_from(_ALNUM),
)
DNS_NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
IPV4 = st.tuples(*[st.integers(0, 255)] * 4).map(lambda parts: ".".join(map(str, parts)))
NAME = st.one_of(DNS_NAME.filter(lambda name: not set(name) <= set("0123456789.")), IPV4)
HOSTS = st.lists(
    st.builds(Host, NAME, st.integers(1, 1024)),
    min_size=1,
    max_size=12,
    unique_by=lambda host: host.name.lower(),
)
