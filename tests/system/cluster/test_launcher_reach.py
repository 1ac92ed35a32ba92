"""Where the launcher finds the head, and hosts that let nobody in. No host is contacted.

Addresses are of 203.0.113.0/24, which is set aside for documentation.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support import stand_in

HOSTS = "203.0.113.1 slots=1\n203.0.113.2 slots=1\n"


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``runner.main`` with the stand-in pdsh; returns the last command that went to it."""
    from deepspeed.launcher import runner

    variables = stand_in.install(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner.sys, "executable", "/bin/true")

    def run(text: str, *options: str, **environment: str) -> list[str]:
        Path("hosts").write_text(text)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        runner.main(["--hostfile", "hosts", *options, "script.py"])
        found = stand_in.calls(variables)
        return found[-1][-1].split() if found else []

    return run


def test_head_address(started) -> None:
    """The address at which ssh reached the head, else the name's own; --master_addr goes first."""
    assert "--master_addr=203.0.113.1" in started(HOSTS)
    assert "--master_addr=203.0.113.7" in started(
        HOSTS, PDSH_REACHED="203.0.113.99 1 203.0.113.7 22"
    )
    assert "--master_addr=203.0.113.1" in started(HOSTS, PDSH_REACHED="")
    assert "--master_addr=203.0.113.1" in started(HOSTS, PDSH_REACHED="::1 1 ::1 22")
    assert "--master_addr=head.example" in started(HOSTS, "--master_addr", "head.example")
    assert "--master_addr=fd00::7" in started(HOSTS, PDSH_REACHED="fd00::9 1 fd00::7 22")


def test_no_address(started, capsys: pytest.CaptureFixture[str]) -> None:
    """The head reached by a tunnel on this machine: other hosts have no address for it."""
    hosts = "127.0.0.9 slots=1\n127.0.0.8 slots=1\n"
    with pytest.raises(SystemExit) as ended:
        started(hosts, PDSH_REACHED="127.0.0.1 1 127.0.0.1 22")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "give --master_addr" in error


@pytest.mark.parametrize("address", ["$(touch pwned)", "a;touch pwned", "-oProxyCommand=x", "a b"])
def test_refused_master_address(
    address: str, started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        started(HOSTS, f"--master_addr={address}")
    assert ended.value.code == 2
    assert "expected a host name or an address" in capsys.readouterr().err
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "pdsh.log").exists()


def test_one_remote_host_goes_through_pdsh(started, tmp_path: Path) -> None:
    assert "--master_addr=127.0.0.1" in started("203.0.113.2 slots=1\n")
    (tmp_path / "pdsh.log").unlink()
    # Names of this machine are started here, without ssh.
    assert started("127.0.0.1 slots=1\n") == []
    assert started("localhost slots=1\n") == []


def test_no_login_is_one_line_a_host(started, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is started on the hosts that would let us in."""
    three = HOSTS + "203.0.113.3 slots=1\n"
    with pytest.raises(SystemExit) as ended:
        started(three, PDSH_HOST_1="denied", PDSH_HOST_2="denied")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    for host in ("203.0.113.2", "203.0.113.3"):
        assert f"host {host} cannot be logged in to (" in error
        assert f"without a password: ssh-copy-id {host}" in error


def test_a_login_that_hangs_is_one_line(
    started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host that does not answer is named, and the one that does is not."""
    from deepspeed.launcher import reach

    monkeypatch.setattr(reach, "REACH_SECONDS", 3)
    begin = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        started(HOSTS, PDSH_HOST_1="hang")
    assert ended.value.code == 2 and time.monotonic() - begin < 20
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "host 203.0.113.2 cannot be logged in to (pdsh and ssh gave no answer within 3" in error


def test_a_command_that_is_too_long_is_one_line(
    started, capsys: pytest.CaptureFixture[str]
) -> None:
    """Linux takes 128 KiB in one argument, and the names of all hosts are one."""
    hosts = "".join(f"host-{number} slots=1\n" for number in range(20_000))
    with pytest.raises(SystemExit) as ended:
        started(hosts, "--master_addr", "203.0.113.1")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pdsh cannot be started: Argument list too long" in error


def test_ssh_asks_nothing_and_the_user_goes_first(started, tmp_path: Path) -> None:
    from deepspeed.launcher.reach import ssh_environment

    words = ssh_environment({"PDSH_SSH_ARGS_APPEND": "-p 2222"})["PDSH_SSH_ARGS_APPEND"].split()
    assert words[:2] == ["-p", "2222"] and "BatchMode=yes" in words
    assert "ServerAliveInterval=4" in words
