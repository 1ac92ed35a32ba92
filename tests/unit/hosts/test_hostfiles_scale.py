"""Long host lists: seconds and memory grow with the list, and so do the bytes that are written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from dsmoe.hosts import writer
from dsmoe.hosts.hostfile import read_hostfile

# Of the whole process. The time is compared with a quarter of the list on the same machine: one
# whose cores are busy takes over twice the seconds, and 16 times a quarter's is what a second loop
# over the list would give.
TIMES_A_QUARTER = 6
RESIDENT_BYTES = 200 << 20

# The child reports its own use. Linux hands ru_maxrss on from the process that forked it, so its
# memory is read from /proc instead.
RUN = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
from dsmoe.cli import main
code = main(["hosts", *sys.argv[1:]])
used = resource.getrusage(resource.RUSAGE_SELF)
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("USED", code, used.ru_utime + used.ru_stime, int(lines["VmHWM"].split()[0]) * 1024)
"""


def _run(folder: Path, *arguments: str) -> tuple[int, float, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "RAY_"))}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(ROOT), *arguments],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
    )
    code, seconds, resident = done.stdout.rpartition("USED ")[2].split()
    assert code == "0", done.stderr
    return int(code), float(seconds), int(resident)


@pytest.mark.long
@pytest.mark.parametrize(
    "hosts, quarter",
    [
        ("n[1-65536]:8", "n[1-16384]:8"),
        ("10.[0-63].[0-255].[1-4]:8", "10.[0-15].[0-255].[1-4]:8"),
    ],
)
def test_65536_names(hosts: str, quarter: str, tmp_path: Path) -> None:
    """Names that no name server knows, and addresses, both resolved."""
    (tmp_path / "quarter").mkdir()
    seconds_of_quarter = _run(tmp_path / "quarter", "--hosts", quarter)[1]
    shutil.rmtree(tmp_path / "quarter")
    _, seconds, resident = _run(tmp_path, "--hosts", hosts)
    assert seconds < TIMES_A_QUARTER * seconds_of_quarter and resident < RESIDENT_BYTES
    assert len(read_hostfile(tmp_path / "hostfile")) == 65536
    assert len(read_hostfile(tmp_path / "hostfile_4096node")) == 4096
    whole = (tmp_path / "hostfile").stat().st_size
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert written < 3.1 * whole  # hostfile, hostfile_65536node, and all powers of two below


@pytest.mark.long
def test_100000_lines(tmp_path: Path) -> None:
    mine = [f"node-{n}.example.com slots=8\n" for n in range(100_000)]
    taken = []
    for some in (mine[:25_000], mine):
        (tmp_path / "mine").write_text("".join(some))
        arguments = ("--hosts-file", "mine", "--no-resolve")
        _, seconds, resident = _run(tmp_path, *arguments)
        taken.append(seconds)
    assert taken[1] < TIMES_A_QUARTER * taken[0] and resident < RESIDENT_BYTES
    assert (tmp_path / "hostfile").read_text() == "".join(mine)


@pytest.mark.parametrize(
    "hosts, last",
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (64, [62, 63, 64]),
        (65, [63, 64, 65]),
        (128, [63, 64, 128]),
        (300, [64, 128, 256, 300]),
    ],
)
def test_sizes(hosts: int, last: list[int]) -> None:
    found = writer.sizes(hosts)
    assert found[-len(last) :] == last
    assert found[: min(hosts, 64)] == list(range(1, min(hosts, 64) + 1))
