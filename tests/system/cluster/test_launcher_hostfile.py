"""The launcher's host file, slots, options and CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import stand_in
from support.drawn_hosts import HOSTS
from support.launcher import lean_launch

from dsmoe.common.errors import HostProblem
from dsmoe.hosts.host import Host
from dsmoe.hosts.hostfile import format_hostfile, parse_hostfile, read_hostfile

FILES = [
    b"n1 slots=4\n",
    b"n1 slots=4",
    b"\r\n  n1\tslots=4  \r\n\r\nn2 slots=1\r\n",
    b"n1 slots=4\rn2 slots=2",
    b"10.0.0.1 slots=8\n10.0.0.2 slots=1024\n",
    b"",
    b"\n \n",
    b"# the head\nn1 slots=4\n",
    b"n1 slots=4 # the head\n",
    b"n1 slots=4\nn2 lots=8\n",
    b"n1 slots=0\n",
    b"n1 slots=-1\n",
    b"n1 slots=+1\n",
    b"n1 slots=1_0\n",
    b"n1 slots=\n",
    b"n1 slots==4\n",
    b"n1 slots=1025\n",
    "n1 slots=٤\n".encode(),
    b"n1\n",
    b"n1 4\n",
    b"n1 slots=4 max-slots=8\n",
    b"n1 slots=4\nn2 slots=4\nN1 slots=2\n",
    b"\xef\xbb\xbfn1 slots=4\n",
    b"n1 slots=4\nn\xff slots=4\n",
    b"n1\x00 slots=4\n",
    b"n1\x0bslots=4\n",
    b"-oProxyCommand=x slots=4\n",
    b"n1;touch${IFS}x slots=4\n",
    b"$(touch${IFS}x) slots=4\n",
    b"n[1-2] slots=4\n",
    b"^hosts slots=4\n",
    b"root@n1 slots=4\n",
    b"fd00::1 slots=4\n",
    b"ssh:n1 slots=4\n",
    b"10.0.0.256 slots=4\n",
    b"10.0.0 slots=4\n",
    b"a" * 64 + b" slots=4\n",
]


@pytest.mark.parametrize("data", FILES, ids=repr)
def test_same_rules_as_dsmoe_hosts(data: bytes, tmp_path: Path) -> None:
    from deepspeed.launcher.errors import LaunchError
    from deepspeed.launcher.runner import fetch_hostfile

    path = tmp_path / "hosts"
    path.write_bytes(data)
    try:
        expected = [(host.name, host.slots) for host in parse_hostfile(data, str(path))]
    except HostProblem as error:
        with pytest.raises(LaunchError) as refused:
            fetch_hostfile(str(path))
        assert str(refused.value) == str(error)
        assert str(error).startswith(f"{path}:") and "\n" not in str(error)
    else:
        assert list(fetch_hostfile(str(path)).items()) == expected


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(hosts=HOSTS, end=st.sampled_from([b"\n", b"\r\n\n"]))
def test_all_that_dsmoe_hosts_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, hosts: list[Host], end: bytes
) -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    path = tmp_path_factory.getbasetemp() / "drawn_hosts"
    path.write_bytes(format_hostfile(hosts).replace(b"\n", end))
    assert [Host(*pair) for pair in fetch_hostfile(str(path)).items()] == hosts


@pytest.mark.timeout(300)
def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A FIFO would wait for a writer, and /dev/zero never ends."""
    from deepspeed.launcher.errors import LaunchError
    from deepspeed.launcher.runner import fetch_hostfile

    os.mkfifo(tmp_path / "fifo")
    for path in (str(tmp_path / "fifo"), str(tmp_path), "/dev/zero"):
        with pytest.raises(LaunchError, match="no regular file"):
            fetch_hostfile(path)
        with pytest.raises(HostProblem, match="not a regular file"):
            read_hostfile(path)
    assert fetch_hostfile(str(tmp_path / "absent")) is None


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``runner.main`` in a folder of its own with the stand-in pdsh; returns the hosts' slots."""
    from deepspeed.launcher import runner

    variables = stand_in.install(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    # The test is about what is started: nothing of it runs.
    monkeypatch.setattr(runner.sys, "executable", "/bin/true")

    def run(text: str, *options: str) -> dict[str, list[int]]:
        Path("hosts").write_text(text)
        runner.main(["--hostfile", "hosts", *options, "script.py"])
        [word] = [w for w in stand_in.calls(variables)[-1][-1].split() if "--world_info" in w]
        return json.loads(base64.urlsafe_b64decode(word.strip("'").partition("=")[2]))

    return run


TWO = "203.0.113.1 slots=4\n203.0.113.2 slots=2\n"


def test_slots_are_capped_never_raised(launch, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(TWO) == {"203.0.113.1": [0, 1, 2, 3], "203.0.113.2": [0, 1]}
    assert launch(TWO, "--num_gpus", "2") == {"203.0.113.1": [0, 1], "203.0.113.2": [0, 1]}
    assert launch(TWO, "--num_nodes", "1") == {"203.0.113.1": [0, 1, 2, 3]}
    assert launch(TWO, "--include", "203.0.113.2@203.0.113.1:3") == {
        "203.0.113.1": [3],
        "203.0.113.2": [0, 1],
    }
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        launch(TWO, "--num_gpus", "3")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "hosts:2: 203.0.113.2 has slots=2" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "options, words",
    [
        (["--hostfile", "absent"], "--hostfile absent: found no such file"),
        (["--hostfile", "."], "--hostfile .: found no such file"),
        (["--hostfile", "empty"], "empty: found no host"),
        (["--hostfile", "two", "--num_nodes", "3"], "two has 2 host(s)"),
        (["--hostfile", "two", "--include", "203.0.113.9"], "'203.0.113.9' not found"),
        (["--hostfile", "two", "--include", "203.0.113.1:x"], "--include"),
        (["--hostfile", "two", "--exclude", "203.0.113.1@203.0.113.2"], "no host is left"),
        (["--hostfile", "two", "--num_gpus", "1", "--include", "203.0.113.1"], "include/exclude"),
        (["--hostfile", "two", "--num_gpus", "0"], "at least 1"),
        (["--num_nodes", "2", "--hostfile", "/dev/null"], "Num nodes is >1"),
    ],
)
def test_one_line_and_status_2(
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from deepspeed.launcher import runner

    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("two").write_text(TWO)
    with pytest.raises(SystemExit) as ended:
        runner.main([*options, "script.py"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("deepspeed: error: ") and error.count("\n") == 1
    assert words in error


@pytest.mark.parametrize(
    "slots, shown, expected",
    [
        ([0, 1], None, "0,1"),
        ([0, 2], "4, 5,6", "4,6"),
        ([1], "GPU-aaaa,MIG-bbbb", "MIG-bbbb"),
        ([0], "", ""),
        ([0, 1], "-1,3", "-1,3"),
        ([0, 2], "4,5,-1,6", None),
    ],
)
def test_mapping_of_slots(slots: list[int], shown: str | None, expected: str | None) -> None:
    from deepspeed.launcher.devices import visible
    from deepspeed.launcher.errors import LaunchError

    environ = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    if expected is None:
        with pytest.raises(LaunchError, match="2 device"):
            visible(slots, environ)
    else:
        assert visible(slots, environ) == expected


def test_visible_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real launch: slot 1 of "7,5" is device 5; a slot too many is one line."""
    script = tmp_path / "say.py"
    script.write_text("import os; print('devices', os.environ['CUDA_VISIBLE_DEVICES'])\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5")

    def launch(slots: list[int]) -> subprocess.CompletedProcess[str]:
        world = base64.urlsafe_b64encode(json.dumps({"n": slots}).encode()).decode()
        command = lean_launch(f"--world_info={world}")
        return subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=180)

    assert "devices 5\n" in launch([1]).stdout
    many = launch([0, 2])
    assert many.returncode == 2 and "slot 2 is not among them" in many.stderr
    assert "Traceback" not in many.stderr
