"""The strict host-file reader: what it refuses, and that the launcher agrees on the rest."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe.common.errors import HostProblem
from dsmoe.hosts.host import Host
from dsmoe.hosts.hostfile import format_hostfile, parse_hostfile, read_hostfile

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


_ASK_LAUNCHER = """
import json, sys
from deepspeed.launcher.runner import fetch_hostfile
print("ANSWER" + json.dumps([list(fetch_hostfile(path).items()) for path in sys.argv[1:]]))
"""


@pytest.mark.long
def test_launcher_reads_the_same(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("deepspeed")
    if spec is None or spec.origin is None:
        pytest.skip("deepspeed is not installed here")
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed here, so deepspeed cannot be imported")
    drawn: list[list[Host]] = []

    @settings(max_examples=60, database=None, deadline=None)
    @given(hosts=HOSTS)
    def collect(hosts: list[Host]) -> None:
        drawn.append(hosts)

    collect()
    paths = []
    for number, hosts in enumerate(drawn):
        path = tmp_path / f"h{number}"
        path.write_bytes(format_hostfile(hosts).replace(b"\n", [b"\n", b"\r\n\n"][number % 2]))
        assert read_hostfile(path) == hosts
        paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", _ASK_LAUNCHER, *paths], capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout.partition("ANSWER")[2])
    assert [[Host(*pair) for pair in pairs] for pairs in answer] == drawn
