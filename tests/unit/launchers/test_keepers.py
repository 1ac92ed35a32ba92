"""Keepers as real processes on this machine, led by a hub: start, output, ends, what is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator

import pytest

from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.launchers.kept import wire
from dsmoe.benchmark.launchers.kept.asking_keepers import ask_kept
from dsmoe.benchmark.launchers.kept.by_keepers import KeptRun
from dsmoe.benchmark.launchers.kept.hub import Hub
from dsmoe.benchmark.launchers.kept.keeper import PROCESS
from dsmoe.benchmark.run.layout import Layout
from dsmoe.benchmark.run.reasons import reason

SECONDS = 120
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
HEAD = f"import json, os, sys, time\nown = {{n: os.environ.get(n) for n in {NAMES}}}\n"


class Kept:
    """Two keepers and a job whose script is ``body``."""

    def __init__(self, folder: Path, body: str) -> None:
        script = folder / "script.py"
        script.write_text(HEAD + body)
        self.hub = Hub(2)
        self.keepers = [self.keeper(rank) for rank in (0, 1)]
        job = Job(folder / "checkout", folder, Layout(("here",), 2), script=script)
        self.log = folder / "log.txt"
        self.run = KeptRun(self.hub, job, self.log)

    def keeper(self, rank: int) -> subprocess.Popen[bytes]:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        # torchrun's own, which must not reach the process
        own.update(self.hub.variables("127.0.0.1"), TORCHELASTIC_USE_AGENT_STORE="True")
        return subprocess.Popen(
            [sys.executable, str(PROCESS), "torchrun"],
            env={**os.environ, **own},
            stderr=subprocess.DEVNULL,
        )

    def wait(self, found: Callable[[], object]) -> object:
        deadline = time.monotonic() + SECONDS
        while not found():
            assert time.monotonic() < deadline, self.log.read_text()
            self.run.poll()
            time.sleep(0.02)
        return found()

    def said(self, text: str) -> bool:
        return self.log.exists() and text in self.log.read_text()

    def end(self) -> tuple[int, str]:
        """The run's code as soon as it has one, and its reason."""
        deadline = time.monotonic() + SECONDS
        while True:
            code = self.run.poll()
            if code is not None:
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.close()
        output = self.run.output
        return code, reason(code, output.marks, output.tail, self.log) if code else ""

    def close(self) -> None:
        self.run.end()
        self.hub.close(7)
        for keeper in self.keepers:
            keeper.wait(SECONDS)
        self.run.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Kept]]:
    made: list[Kept] = []

    def one(body: str) -> Kept:
        made.append(Kept(tmp_path, body))
        return made[-1]

    yield one
    for kept in made:
        for keeper in kept.keepers:
            keeper.kill()


def test_processes_get_their_places_and_their_output_is_whole(
    start: Callable[[str], Kept],
) -> None:
    """20,000 lines from each, faster than they are read; keepers end with the command's code."""
    kept = start(
        "print(json.dumps([own, [n for n in os.environ if 'TORCHELASTIC' in n]]), flush=True)\n"
        "for n in range(20000): print(own['RANK'], n, 'x' * 100)\n"
    )
    assert kept.end() == (0, "")
    lines = kept.log.read_text().splitlines()
    places = [json.loads(line) for line in lines if line.startswith("[")]
    assert [foreign for _, foreign in places] == [[], []]
    first, second = sorted((own for own, _ in places), key=lambda own: own["RANK"])
    assert (first["RANK"], second["RANK"], first["LOCAL_WORLD_SIZE"]) == ("0", "1", "2")
    assert first["MASTER_ADDR"] == second["MASTER_ADDR"] == "127.0.0.1"
    assert first["MASTER_PORT"] == second["MASTER_PORT"] != "None"
    for rank in ("0", "1"):
        numbers = [int(line.split()[1]) for line in lines if line.startswith(f"{rank} ")]
        assert numbers == list(range(20000))
    assert [keeper.returncode for keeper in kept.keepers] == [7, 7]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("os.kill(os.getpid(), 9)", "training process 1 was killed by signal 9 (SIGKILL)"),
        ("sys.exit(3)", "training process 1 ended with exit status 3"),
        ("os.kill(os.getpid(), 15)", "rank 1 was asked to end by SIGTERM"),
    ],
)
def test_a_process_that_fails_is_named_and_the_other_one_ended(
    body: str, expected: str, start: Callable[[str], Kept]
) -> None:
    kept = start(
        f"if own['RANK'] == '1':\n    {body}\nprint(os.getpid(), flush=True)\ntime.sleep(600)"
    )
    code, why = kept.end()
    assert code == 1 and expected in why
    [pid] = [int(line) for line in kept.log.read_text().splitlines() if line.isdigit()]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_killed_keeper_is_a_lost_host(start: Callable[[str], Kept]) -> None:
    kept = start("print('up', flush=True); time.sleep(600)")
    kept.wait(lambda: kept.said("up"))
    kept.keepers[1].kill()
    code, why = kept.end()
    assert code == 1 and "rank 1: its keeper has ended without a message" in why


@pytest.mark.long
def test_a_keeper_that_falls_silent_is_lost(
    start: Callable[[str], Kept], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = start("print('up', flush=True); time.sleep(600)")
    kept.wait(lambda: kept.said("up"))
    monkeypatch.setattr(wire, "SILENT_SECONDS", 8.0)  # the other one is heard every 2 s
    os.kill(kept.keepers[1].pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + SECONDS
        while kept.run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(kept.keepers[1].pid, signal.SIGCONT)
    kept.close()
    tail = kept.run.output.tail
    assert "rank 1: no message for 8 s" in reason(1, kept.run.output.marks, tail, kept.log)


def test_processes_end_with_the_command(start: Callable[[str], Kept]) -> None:
    """The hub's connections break, as if the command had been killed."""
    kept = start("print(os.getpid(), flush=True); time.sleep(600)")
    kept.wait(lambda: kept.said("\n") and len(kept.log.read_text().split()) == 2)
    pids = list(map(int, kept.log.read_text().split()))
    for peer in kept.hub.peers.values():
        peer.connection.shutdown(socket.SHUT_RDWR)
    assert [keeper.wait(SECONDS) for keeper in kept.keepers] == [1, 1]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_strangers_on_the_port_are_not_heard(start: Callable[[str], Kept]) -> None:
    hub = Hub(1)
    numbers = dict.fromkeys(("rank", "local_rank", "port", "pid"), 0)
    hello = {**numbers, "world": 1, "host": "a", "address": "b"}
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", wire.encode({**hello, "token": "guess"})):
        with socket.create_connection(("127.0.0.1", hub.port), timeout=SECONDS) as stranger:
            stranger.sendall(sent)
            stranger.shutdown(socket.SHUT_WR)
            assert b"start" not in stranger.recv(100)
    assert hub.missing() == [0]
    hub.close()


def test_hosts_answer_through_their_keepers(start: Callable[[str], Kept]) -> None:
    kept = start("")
    code = "import os; print('rank', os.environ['RANK']); assert os.environ['RANK'] == '0', 'no'"
    good, bad = ask_kept(kept.hub, [0, 1], code, lambda: None, lambda: "")
    kept.close()
    assert (good.lines, good.error, good.reached) == (["rank 0"], "", True)
    assert bad.lines[0] == "rank 1" and bad.error == "AssertionError: no" and bad.reached
    assert good.begin <= good.end
