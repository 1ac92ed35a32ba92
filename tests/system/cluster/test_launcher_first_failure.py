"""Of several processes that fail together, the launcher names the one that was the cause."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from support import stand_in
from support.launcher import lean_runner

from dsmoe.benchmark.run.reasons import reason

# Every process holds a connection to the victim, and fails as soon as that one is gone, as a
# process group does. The victim ends itself once all the others are connected.
SCRIPT = """
import os, signal, socket, sys
victim, how, place = int(sys.argv[2]), sys.argv[3], sys.argv[4]
rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
link = socket.socket(socket.AF_UNIX)
if rank == victim:
    link.bind(place + ".new")
    link.listen(count)
    os.rename(place + ".new", place)
    held = [link.accept()[0] for _ in range(count - 1)]
    if how == "exit":
        sys.exit(7)
    os.kill(os.getpid(), int(how))
while True:
    try:
        link.connect(place)
        break
    except OSError:
        __import__("time").sleep(0.01)
link.recv(1)
sys.exit("lost a peer")
"""


def run(folder: Path, count: int, victim: int, how: str) -> subprocess.CompletedProcess[str]:
    (folder / "fail.py").write_text(SCRIPT)
    words = [
        "--hostfile",
        os.devnull,
        "--num_gpus",
        str(count),
        "fail.py",
        str(victim),
        how,
        "link",
    ]
    return subprocess.run(
        lean_runner(*words),
        cwd=folder,
        env={**os.environ, "DSMOE_DEVICES": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("how", ["9", "15", "exit"])
def test_the_killed_process_is_named(victim: int, how: str, tmp_path: Path) -> None:
    """Base: always the last one, "died with" the signal or "returned" the status of another."""
    done = run(tmp_path, 3, victim, how)
    assert done.returncode == 1, done.stdout
    [line] = [line for line in done.stdout.splitlines() if line.startswith("deepspeed: error: ")]
    said = re.match(r"deepspeed: error: rank (\d) on localhost \(process \d+\) (.*)", line)
    assert said is not None, line
    assert "Traceback" not in done.stdout
    if how == "exit":
        # Ends without a signal differ by milliseconds only: the first is one that failed.
        assert said[2] in ("ended with exit status 7", "ended with exit status 1")
        return
    name = signal.Signals(int(how)).name
    assert (int(said[1]), said[2]) == (victim, f"was killed by signal {how} ({name})")
    why = reason(done.returncode, [], done.stdout.splitlines(), tmp_path / "log.txt")
    assert why.startswith(f"training process {victim} was killed by signal {how} ({name})")


def test_the_rank_is_that_of_the_whole_run(tmp_path: Path) -> None:
    """Two hosts of one process each: both are process 0 of their host, the killed one is rank 1."""
    (tmp_path / "hosts").write_text("203.0.113.1 slots=1\n203.0.113.2 slots=1\n")
    (tmp_path / "fail.py").write_text(SCRIPT)
    launcher = lean_runner("--hostfile", "hosts")
    done = subprocess.run(
        [*launcher, "fail.py", "1", "9", "link"],
        cwd=tmp_path,
        env={**os.environ, **stand_in.install(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    why = reason(done.returncode, [], done.stdout.splitlines(), tmp_path / "log.txt")
    assert why.startswith("training process 1 was killed by signal 9 (SIGKILL)"), done.stdout


def test_a_launcher_that_is_ended_blames_nobody(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as link:
        link.bind(str(tmp_path / "link"))
        link.listen(2)
        ended = threading.Thread(target=_end_launcher, args=(link,))
        ended.start()
        done = run(tmp_path, 2, 9, "no such rank")
        ended.join()
    assert done.returncode != 0
    assert "deepspeed: error: rank" not in done.stdout, done.stdout


def _end_launcher(link: socket.socket) -> None:
    """SIGTERM to launch.py, once both its processes are connected."""
    import psutil

    connections = [link.accept()[0] for _ in range(2)]
    pid = int.from_bytes(
        connections[0].getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), "little"
    )
    launcher = psutil.Process(pid).parent()
    assert launcher is not None
    launcher.terminate()
    launcher.wait(20)
    for connection in connections:
        connection.close()
