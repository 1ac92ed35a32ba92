"""Runs of the benchmark on hosts of namespaces, for the tests of every launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Sequence

from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.rows import read_rows
from dsmoe.benchmark.results.store import RECORDS, ROWS, check_agreement, read_records
from dsmoe.hosts.spaces.namespace_cluster import HostCluster
from support import ROOT
from support.benchmark_runs import START_SECONDS

SCRIPT = [str(ROOT / "run_deepspeed_benchmark.sh")]
DSMOE = [sys.executable, "-m", "dsmoe"]
COMMAND = [*DSMOE, "run"]
FRONT_DOOR = "-m dsmoe run"  # in a command line
MARK = "train/training_process.py"
# Sums of floats in another order: 4 processes against 2, fp32.
TOLERANCE = 1e-4
# From the failure to the end of everything, as the guide promises; busy cores keep it too.
END_SECONDS = 30


def environment() -> dict[str, str]:
    """As a user has it: gloo's interface is for the benchmark to find."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {k: v for k, v in os.environ.items() if k != "GLOO_SOCKET_IFNAME"}
    return {**own, "PATH": path, "DSMOE_PYTHON": sys.executable}


def clean(cluster: HostCluster, *command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``command`` on n1, in ``folder``."""
    return cluster.run("n1", list(command), cwd=folder, env=environment(), timeout=START_SECONDS)


def last_record(output: Path) -> RunRecord:
    assert check_agreement(output)
    return read_records(output / RECORDS)[-1]


def failure(output: Path) -> str:
    """The reason of the last run, which must have failed, with a row that says so."""
    record, row = last_record(output), read_rows(output / ROWS)[-1]
    assert (record.status, row.value["tflops"]) == ("failed", -1)
    assert row.value["reason"] == record.reason
    return record.reason or ""


def words(processes: int, *more: str) -> list[str]:
    """A short run, but for the command that these words are for."""
    short = ["--suite", "smoke", "--steps", "2", "--data", "text.txt"]
    # as on one host: by itself a run keeps the experts' tokens inside each host
    return [str(processes), *short, "--expert-parallel", str(processes), *more]


def trained(
    hosts: HostCluster,
    folder: Path,
    processes: int,
    used: int,
    *more: str,
    command: Sequence[str] = COMMAND,
) -> list[float]:
    """Losses of a run that must end well, on ``used`` hosts; ``more`` begins with --output."""
    done = clean(hosts, *command, *words(processes, *more), folder=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    record = last_record(folder / more[1])
    assert (record.num_hosts, record.num_devices_per_host) == (used, processes // used)
    return record.losses


def iterations(output: Path) -> int:
    """How many iterations the last run in ``output`` has finished."""
    logs = sorted(output.glob("runs/*/iterations.jsonl"))
    return logs[-1].read_bytes().count(b"\n") if logs else 0
