"""Host files and the benchmark over hosts of network namespaces, and one of them cut off."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cluster_runs import (
    COMMAND,
    END_SECONDS,
    MARK,
    SCRIPT,
    START_SECONDS,
    TOLERANCE,
    clean,
    environment,
    last_record,
    trained,
    words,
)

from dsmoe.benchmark.preflight.check import FAIL, OK
from dsmoe.benchmark.results.rows import read_rows
from dsmoe.benchmark.results.store import ROWS
from dsmoe.hosts.spaces.namespace_cluster import HostCluster


@pytest.mark.long
def test_the_environment_of_every_host(hosts: HostCluster, folder: Path) -> None:
    """n1 and n2 are right in every respect; n4, whose cable is pulled, is one failure."""
    hosts.plug("n4", "down")
    (folder / "one_is_off").write_text("n1 slots=1\nn2 slots=1\nn4 slots=1\n")
    command = [sys.executable, "-m", "dsmoe", "check", "--json"]
    done = clean(hosts, *command, "--hostfile", "one_is_off", folder=folder)
    assert done.returncode == 8, done.stderr
    checks = [check for check in json.loads(done.stdout)["checks"] if check["host"]]
    wrong = {(check["host"], check["what"]) for check in checks if check["state"] == FAIL}
    assert wrong == {("n4", "without a password")}
    for host in ("n1", "n2"):
        right = {c["what"] for c in checks if c["host"] == host and c["state"] == OK}
        assert right >= {"without a password", "Python", "torch", "clock"}


@pytest.mark.long
def test_two_hosts_train_as_one(hosts: HostCluster, folder: Path, on_one_host: list[float]) -> None:
    """Losses of 2 x 1 processes over gloo equal those of 2 on one host; by the script."""
    options = ["--output", "two", "--hostfile", "hostfile_2node"]
    losses = trained(hosts, folder, 2, 2, *options, command=SCRIPT)
    assert len(losses) == 3
    assert losses == pytest.approx(on_one_host, rel=1e-6)
    log = next((folder / "two").glob("runs/*/log.txt")).read_text()
    assert "n2: " in log and "10.77.0.1" in log


@pytest.mark.slow
def test_four_hosts_train_as_one(
    hosts: HostCluster, folder: Path, on_one_host: list[float]
) -> None:
    options = ["--output", "four", "--hostfile", "hostfile_4node"]
    losses = trained(hosts, folder, 4, 4, *options)
    assert losses == pytest.approx(on_one_host, rel=TOLERANCE)


@pytest.mark.long
def test_a_host_is_cut_off(hosts: HostCluster, folder: Path) -> None:
    """Soon nothing runs anywhere; a row with -1 and the reason; a status that is not 0."""
    options = ["--hostfile", "hostfile_2node", "--output", "cut", "--steps", "100000"]
    started = hosts.start(
        "n1",
        [*COMMAND, *words(2), *options],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not any(path.stat().st_size for path in folder.glob("cut/runs/*/iterations.jsonl")):
            assert started.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        hosts.plug("n2", "down")
        cut = time.monotonic()
        output, _ = started.communicate(timeout=END_SECONDS)
        while any(hosts.processes(host, MARK) for host in ("n1", "n2")):
            assert time.monotonic() - cut < END_SECONDS, [
                hosts.processes(h, MARK) for h in ("n1", "n2")
            ]
            time.sleep(0.2)
    finally:
        started.kill()
    assert started.returncode == 1, output
    record = last_record(folder / "cut")
    assert record.status == "failed" and (record.num_hosts, record.num_devices_per_host) == (2, 1)
    assert "host n2: exited with exit code 255" in (record.reason or "")
    [row] = read_rows(folder / "cut" / ROWS)
    assert row.value["tflops"] == -1


def test_processes_that_do_not_fill_hosts(tmp_path: Path, capsys) -> None:
    from dsmoe.cli import main

    (tmp_path / "hosts").write_text("n1 slots=4\nn2 slots=2\n")
    for processes in ("2", "4"):
        options = ["--suite", "smoke", "--hostfile", str(tmp_path / "hosts"), "--dry-run"]
        assert main(["run", processes, *options]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        assert f"--num_nodes 1 --num_gpus {processes}" in line and "--master_addr" not in line
    (tmp_path / "hosts").write_text("localhost slots=3\nn2 slots=3\n")
    assert main(["run", "4", "--suite", "smoke", "--hostfile", str(tmp_path / "hosts")]) == 2
    error = capsys.readouterr().err
    assert "4 processes do not fill hosts of 3 slots" in error and error.count("\n") == 1
