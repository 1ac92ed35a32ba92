"""The strict host-file reader: what it refuses, and that it reads what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn_hosts import HOSTS

from dsmoe.common.errors import HostProblem
from dsmoe.hosts.host import Host
from dsmoe.hosts.hostfile import format_hostfile, parse_hostfile, read_hostfile

REFUSED = [
    (b"a slots=8\n# all\n", 2, "comment"),
    (b"a slots=8 # head\n", 1, "comment"),
    (b"a lots=8\n", 1, "'a lots=8', expected 'NAME slots=N'"),
    (b"\n\na\n", 3, "'a', expected 'NAME slots=N'"),
    (b"a slots=4 max_slots=8\n", 1, "expected 'NAME slots=N'"),
    (b"a:4\n", 1, "expected 'NAME slots=N'"),
    (b"a slots=0\n", 1, "slot count '0'"),
    (b"a slots=-1\n", 1, "slot count '-1'"),
    (b"a slots=4.0\n", 1, "slot count '4.0'"),
    (b"a slots=\n", 1, "slot count ''"),
    (b"a slots=99999999\n", 1, "from 1 to 1024"),
    ("a slots=\u0664\n".encode(), 1, "slot count"),
    (b"\xef\xbb\xbfa slots=8\n", 1, "byte-order mark"),
    (b"a slots=8\nb slots=8\nA slots=8\n", 3, "first on line 1"),
    (b"a;reboot slots=8\n", 1, "'a;reboot'"),
    (b"$(reboot) slots=8\n", 1, "'$(reboot)'"),
    (b"`reboot` slots=8\n", 1, "letters, digits"),
    (b"-oProxyCommand=x slots=8\n", 1, "not starting with '-'"),
    (b"ubuntu@a slots=8\n", 1, "~/.ssh/config"),
    (b"fd00::1 slots=8\n", 1, "IPv6"),
    (b"[fd00::1]:4 slots=8\n", 1, "IPv6"),
    (b"10.0.0.256 slots=8\n", 1, "0 to 255"),
    (b"8 slots=8\n", 1, "0 to 255"),
    (b"a. slots=8\n", 1, "host name 'a.'"),
    ("n\u00f6de slots=8\n".encode(), 1, "host name"),
    (b"n\xf6de slots=8\n", 1, "not UTF-8"),
    (b"a\x00 slots=8\n", 1, "control character"),
    (b"x" * 254 + b" slots=8\n", 1, "host name"),
]


@pytest.mark.parametrize("data, line, words", REFUSED)
def test_refused_with_file_and_line(data: bytes, line: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_bytes(data)
    with pytest.raises(HostProblem) as caught:
        read_hostfile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: found ")
    assert words in message
    assert "\n" not in message and message.isascii()


@pytest.mark.parametrize("data", [b"", b"\n \t\r\n"])
def test_empty_file_is_refused(data: bytes, tmp_path: Path) -> None:
    # DeepSpeed's own launcher would silently run on this machine alone.
    path = tmp_path / "hostfile"
    path.write_bytes(data)
    with pytest.raises(HostProblem, match="no host"):
        read_hostfile(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HostProblem, match="no such file"):
        read_hostfile(tmp_path / "absent")
    with pytest.raises(HostProblem, match="not a regular file"):
        read_hostfile(tmp_path)


@settings(deadline=None)
@given(hosts=HOSTS, end=st.sampled_from(["\n", "\r\n", "\r"]), blank=st.sampled_from(["", " \t"]))
def test_round_trip(hosts: list[Host], end: str, blank: str) -> None:
    data = format_hostfile(hosts)
    assert parse_hostfile(data, "x") == hosts
    lines = data.decode("ascii").splitlines()
    # Line ends, blank lines, inner spaces and a missing last line end do not matter.
    other = (blank + end).join(line.replace(" ", " \t ") for line in ["", *lines])
    assert parse_hostfile(other.encode("ascii"), "x") == hosts
