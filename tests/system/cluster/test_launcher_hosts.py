"""The launcher over hosts of network namespaces: real sshd, real pdsh, real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

import pytest
from support.launcher import lean_runner

from dsmoe.hosts.spaces.namespace_cluster import HostCluster

SECONDS = 300  # only a hang comes near
# Says where it is, waits for its peers by the launcher's address, then does what it is told.
SCRIPT = """
import json, os, socket, sys, time
rank, job = int(os.environ["RANK"]), sys.argv[2]
addresses = socket.getaddrinfo(os.environ["MASTER_ADDR"], None)
names = ["RANK", "WORLD_SIZE", "MASTER_ADDR"]
said = [os.environ[name] for name in names] + [os.environ["SSH_CONNECTION"].split()[2]]
print("SAID", json.dumps(said), flush=True)
if job == "fail" and rank == 1:
    sys.exit(5)
open(f"{job}-{rank}", "w").write(str(os.getpid()))
time.sleep(0 if job == "say" else 900)
"""
MARK = "job.py"


class Launcher:
    """``deepspeed --hostfile …`` on n1."""

    def __init__(self, cluster: HostCluster, folder: Path, hosts: str, *words: str) -> None:
        self.cluster = cluster
        self.folder = folder
        (folder / MARK).write_text(SCRIPT)
        (folder / "hosts").write_text(hosts)
        command = lean_runner("--hostfile", "hosts")
        self.process = cluster.start(
            "n1",
            [*command, *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PDSH_CONNECT_TIMEOUT": "3"},
        )

    def wait_for(self, *files: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not all((self.folder / name).exists() for name in files):
            assert self.process.poll() is None and time.monotonic() < deadline, self.end()
            time.sleep(0.1)

    def end(self, seconds: float = SECONDS) -> tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()
        return self.process.returncode, out, err

    def wait_until_gone(self, host: str) -> None:
        """Until nothing of the launch runs on ``host``; what is not ended sleeps for longer."""
        started = time.monotonic()
        while found := self.cluster.processes(host, MARK):
            assert time.monotonic() - started < SECONDS, f"{host} still runs {found}"
            time.sleep(0.2)


@pytest.fixture
def launch(hosts: HostCluster, tmp_path: Path) -> Callable[..., Launcher]:
    return lambda text, *words: Launcher(hosts, tmp_path, text, *words)


def said(output: str) -> dict[str, list[str]]:
    """Host -> what its process said, from pdsh's lines."""
    lines = [line.split(": SAID ", 1) for line in output.splitlines() if ": SAID " in line]
    return {host: json.loads(words) for host, words in lines}


def test_two_hosts_the_head_is_the_first_of_the_file(launch) -> None:
    code, out, err = launch("n3 slots=1\r\nn2 slots=1\r\n", MARK, "say").end()
    assert code == 0, err
    assert said(out) == {
        "n3": ["0", "2", "10.77.0.3", "10.77.0.3"],
        "n2": ["1", "2", "10.77.0.3", "10.77.0.2"],
    }


def test_one_remote_host_runs_there(launch) -> None:
    """Base: it would have run on n1. And a host without an sshd is one line, at once."""
    code, out, err = launch("n2 slots=1\n", MARK, "say").end()
    assert code == 0, err
    assert said(out) == {"n2": ["0", "1", "127.0.0.1", "10.77.0.2"]}


def test_a_host_that_does_not_answer_is_one_line(launch, hosts: HostCluster) -> None:
    hosts.plug("n3", "down")
    code, _, err = launch("n2 slots=1\nn3 slots=1\n", MARK, "say").end()
    assert code == 2
    [line] = [line for line in err.splitlines() if "deepspeed: error" in line]
    assert "host n3 cannot be logged in to" in line and "Traceback" not in err


def test_failure_on_one_host_ends_both(launch) -> None:
    launcher = launch("n1 slots=1\nn2 slots=1\n", MARK, "fail")
    code, _, err = launcher.end()
    assert code == 1
    assert "deepspeed: error: host n2: exited with exit code 1" in err
    launcher.wait_until_gone("n1")


def test_interrupt_ends_both(launch) -> None:
    """Ctrl-C reaches the launcher alone: pdsh is in a session of its own."""
    launcher = launch("n1 slots=1\nn2 slots=1\n", MARK, "wait")
    launcher.wait_for("wait-0", "wait-1")
    launcher.process.send_signal(signal.SIGINT)
    code, _, _ = launcher.end()
    assert code == 128 + signal.SIGINT
    launcher.wait_until_gone("n1")
    launcher.wait_until_gone("n2")


@pytest.mark.long
def test_cut_off_host_ends_by_itself(launch, hosts: HostCluster) -> None:
    """The cable of n2 is pulled: soon nothing runs on either side, and it is a failure."""
    launcher = launch("n1 slots=1\nn2 slots=1\n", MARK, "wait")
    launcher.wait_for("wait-0", "wait-1")
    hosts.plug("n2", "down")
    code, _, err = launcher.end()
    assert code == 255 and "host n2: exited with exit code 255" in err
    launcher.wait_until_gone("n1")
    launcher.wait_until_gone("n2")
