"""Hosts given by hand: plain, OpenMPI and MPICH forms; one machine under two names; slot counts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe.common.errors import HostProblem
from dsmoe.hosts.host import Candidate, Host
from dsmoe.hosts.identity import refuse_same_machine
from dsmoe.hosts.sources.found import Found, settle
from dsmoe.hosts.sources.listed import parse_hosts_option, read_hosts_file


def _pairs(candidates: list[Candidate]) -> list[tuple[str, int | None]]:
    return [(candidate.name, candidate.slots) for candidate in candidates]


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "hosts"
    path.write_bytes(data)
    return path


def test_every_form_in_one_file(tmp_path: Path) -> None:
    data = (
        b"\xef\xbb\xbf# the cluster\r\n\r\n10.0.0.1\r\n"
        b"node-1 slots=4 max_slots=8 # OpenMPI\r\nnode_2:2\r\n  c.example.com\tslots=3  \r\n"
    )
    assert _pairs(read_hosts_file(_file(tmp_path, data))) == [
        ("10.0.0.1", None),
        ("node-1", 4),
        ("node_2", 2),
        ("c.example.com", 3),
    ]


@pytest.mark.parametrize(
    "data, line, words",
    [
        (b"a\n\nb lots=8\n", 3, "'lots=8'"),
        (b"a\nb:x\n", 2, "slot count 'x'"),
        (b"a:0\n", 1, "slot count '0'"),
        (b"a slots=-4\n", 1, "slot count '-4'"),
        (b"a:4 slots=4\n", 1, "two slot counts"),
        (b"a slots=4 slots=4\n", 1, "two slot counts"),
        (b"a slots=4 max-slots=2\n", 1, "max_slots below"),
        (b"a:4\n# again\nA:4\n", 3, "first at"),
        (b"fd00::1\n", 1, "IPv6"),
        (b"a b\n", 1, "'b' in 'a b'"),
        (b"a$(id)\n", 1, "letters, digits"),
        (b"-a\n", 1, "not starting with '-'"),
        (b"\xff\xfea\x00\n\x00", 1, "UTF-16"),
    ],
)
def test_refused_with_file_and_line(data: bytes, line: int, words: str, tmp_path: Path) -> None:
    path = _file(tmp_path, data)
    with pytest.raises(HostProblem) as caught:
        read_hosts_file(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_no_host_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(HostProblem, match="no host"):
        read_hosts_file(_file(tmp_path, b"# none\n"))
    with pytest.raises(HostProblem, match="No such file"):
        read_hosts_file(tmp_path / "absent")


def test_hosts_option() -> None:
    assert _pairs(parse_hosts_option("a, b:4")) == [("a", None), ("b", 4)]
    assert _pairs(parse_hosts_option("n[08-10,12]:4,a[1-2]")) == [
        *[(f"n{number}", 4) for number in ("08", "09", "10", "12")],
        ("a1", None),
        ("a2", None),
    ]
    for text, words in (("[fd00::1]:4", "IPv6"), ("n[1-", "letters, digits"), ("n[2-1]", "rising")):
        with pytest.raises(HostProblem, match=words):
            parse_hosts_option(text)
    with pytest.raises(HostProblem, match="item 2: found nothing"):
        parse_hosts_option("a,,b")
    with pytest.raises(HostProblem, match="item 2: found the host a again"):
        parse_hosts_option("a:4,a:4")


_COUNTS = st.lists(st.none() | st.integers(1, 8), min_size=1, max_size=6)


@settings(deadline=None)
@given(counts=_COUNTS, slots=st.none() | st.integers(1, 8), mixed=st.booleans())
def test_settle(counts: list[int | None], slots: int | None, mixed: bool) -> None:
    found = Found("list", "", [Candidate(f"h{i}", n, "") for i, n in enumerate(counts)])
    want = [slots or n for n in counts]
    refused = None in want or (len(set(want)) > 1 and not mixed)
    if refused:
        with pytest.raises(HostProblem):
            settle(found, slots, mixed)
        return
    assert settle(found, slots, mixed) == [Host(f"h{i}", n or 0) for i, n in enumerate(want)]
    over = [n for n in counts if slots and n and slots > n]
    assert len(found.warnings) == bool(over)


def _candidates(*names: str) -> list[Candidate]:
    return [Candidate(name, 4, f"line {n}") for n, name in enumerate(names, 1)]


@pytest.mark.parametrize("name", ["localhost", socket.gethostname()])
def test_a_name_and_its_address_are_one_host(name: str) -> None:
    try:
        address = str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except OSError:
        pytest.skip(f"{name} has no IPv4 address here")
    with pytest.raises(HostProblem, match="one machine"):
        refuse_same_machine(_candidates(address, name))


def test_own_address_and_loopback_name_are_one_host() -> None:
    # Debian gives the machine's own name the address 127.0.1.1: no address in common to compare.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # chooses the outward address, sends nothing
        except OSError:
            pytest.skip("no route, so no address but loopback here")
        outward = probe.getsockname()[0]
    with pytest.raises(HostProblem, match="this machine"):
        refuse_same_machine(_candidates(outward, "localhost"))


def test_a_name_with_debians_loopback_address_is_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Debian's installer writes "127.0.1.1 head" into /etc/hosts; elsewhere this says so instead.
    real = socket.getaddrinfo

    def as_debian(name: str, *rest: object, **more: object) -> object:
        return real("127.0.1.1" if name == "head" else name, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(socket, "getaddrinfo", as_debian)
    with pytest.raises(HostProblem, match="this machine"):
        refuse_same_machine(_candidates("localhost", "head"))


def test_other_hosts_pass_and_unknown_names_are_named() -> None:
    assert refuse_same_machine(_candidates("10.0.0.1", "10.0.0.2")) == []
    (warning,) = refuse_same_machine(_candidates("no-such-host.invalid", "10.0.0.2"))
    assert "no-such-host.invalid" in warning
    (warning,) = refuse_same_machine(_candidates("127.0.0.2", "10.0.0.2"))
    assert "127.0.0.2" in warning
