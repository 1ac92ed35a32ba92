"""One job by keepers: waits until all are there, starts their processes, watches, and ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Callable

from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.launchers.kept import wire
from dsmoe.benchmark.launchers.kept.hub import Hub, Peer
from dsmoe.benchmark.run.marks import LOST_PEER
from dsmoe.benchmark.run.processes import Output
from dsmoe.benchmark.run.reasons import KEEPER

# Python's start on every host, from a shared file system that is cold.
GATHER_SECONDS = 120.0
# What another process says of itself may still be on its way.
LAST_WORDS_SECONDS = 1.0
END_SECONDS = 7.0
FAILED = 1


class KeptRun:
    """The processes of ``job`` as keepers have them; a launcher's Running.

    ``launcher_code()`` is the exit code of what started the keepers, None while that runs.
    """

    def __init__(self, hub: Hub, job: Job, log: Path) -> None:
        self._hub, self._job = hub, job
        self.launcher_code: Callable[[], int | None] = lambda: None
        reading, self.writing = os.pipe()
        self.output = Output(os.fdopen(reading, "rb"), log)
        self._begin = time.monotonic()
        self._started = False
        self._failed_at: float | None = None
        self._told: set[str] = set()
        self._printing = threading.Lock()
        hub.on_line = self._print

    def poll(self) -> int | None:
        """As a launcher's Running has it."""
        if self._failed_at is None:
            problem = self._problem()
            if problem is None:
                done = [peer.ended for peer in self._hub.peers.values()]
                return 0 if self._started and all(code == 0 for code in done) else None
            self._failed_at = time.monotonic()
        self._problem()  # others may have failed by now, each is a line of the log
        over = all(p.ended is not None or p.gone for p in self._hub.peers.values())
        if over or time.monotonic() - self._failed_at > self._patience():
            return FAILED
        return None

    def _patience(self) -> float:
        """Seconds that other processes have to say more, after the first has failed.

        A process that only lost another one is not the cause, which shows by its silence.
        """
        lost = {mark.rank for mark in self.output.marks if mark.kind == LOST_PEER}
        peers = self._hub.peers.values()
        cause = any(p.gone or p.asked or (p.ended and p.rank not in lost) for p in peers)
        if cause or not self._started or self.launcher_code() is not None:
            return LAST_WORDS_SECONDS
        return wire.SILENT_SECONDS + wire.BEAT_SECONDS

    def say(self, words: str) -> None:
        """A line of the log by which the reason of a failure is found; each is written once."""
        if words not in self._told:
            self._told.add(words)
            self._write(f"{KEEPER}{words}\n")

    def end(self) -> None:
        """End every process that can be reached; the keepers stay."""
        self._hub.tell({"do": "end"})
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline and self._started:
            if all(p.ended is not None or p.lost() for p in self._hub.peers.values()):
                break
            time.sleep(0.05)

    def close(self) -> None:
        """No more output comes."""
        self._hub.on_line = lambda peer, text: None
        with contextlib.suppress(OSError):
            os.close(self.writing)
        self.output.join(timeout=END_SECONDS)

    def _problem(self) -> str | None:
        peers = sorted(self._hub.peers.values(), key=lambda peer: peer.rank)
        found = [self._problem_of(peer) for peer in peers]
        problem = next((words for words in found if words), None)
        code = self.launcher_code()
        if not self._started:
            problem = problem or self._gather(code)
        elif problem is None and code is not None and any(p.ended is None for p in peers):
            problem = f"what started the processes ended with exit status {code}"
            self.say(problem)
        return problem

    def _problem_of(self, peer: Peer) -> str | None:
        """Tell how the peer's process failed, or what became of its keeper."""
        words = None
        asked = peer.asked
        if peer.ended == -signal.SIGTERM:  # not by this command: Slurm reaches the process too
            asked = signal.SIGTERM
        if asked and not (peer.ended and peer.ended != -asked):
            by = signal.Signals(asked).name
            words = f"host {peer.host}: rank {peer.rank} was asked to end by {by}"
        elif peer.ended:
            name = f"rank {peer.rank} on {peer.host} (process {peer.pid})"
            words = f"{name} ended with exit status {peer.ended}"
            if peer.ended < 0:
                words = f"{name} was killed by signal {-peer.ended}"
        elif peer.ended is None and peer.lost():
            words = f"host {peer.host}: rank {peer.rank}: {peer.gone}"
        if words:
            self.say(words)
        return words

    def _gather(self, launcher_code: int | None) -> str | None:
        missing = self._hub.missing()
        if not missing:
            self._start()
            return None
        waited = time.monotonic() - self._begin
        if launcher_code is None and waited < GATHER_SECONDS:
            return None
        ranks = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        words = f"rank {ranks} did not start within {waited:.0f} s"
        if launcher_code is not None:
            words = f"rank {ranks} did not start: the launcher ended with status {launcher_code}"
        self.say(words)
        return words

    def _start(self) -> None:
        head = self._hub.peers[0]
        on_host: dict[str, int] = {}
        for peer in self._hub.peers.values():
            on_host[peer.host] = on_host.get(peer.host, 0) + 1
            peer.ended = None
        meeting = {
            "MASTER_ADDR": self._job.master or self._hub.head_address(),
            "MASTER_PORT": str(self._job.port or head.port),
        }
        for peer in self._hub.peers.values():
            message: dict[str, Any] = {"do": "start", "command": self._job.process()}
            message["environment"] = {**self._job.environment(), **meeting}
            message["on_host"] = on_host[peer.host]
            self._hub.send(peer, message)
        self._started = True

    def _print(self, peer: Peer, text: str) -> None:
        alone = len({other.host for other in self._hub.peers.values()}) == 1
        self._write(f"{text}\n" if alone else f"{peer.host}: {text}\n")

    def _write(self, line: str) -> None:
        data = line.encode("utf-8", "replace")
        with contextlib.suppress(OSError), self._printing:
            while data:  # a pipe may take a part
                data = data[os.write(self.writing, data) :]
