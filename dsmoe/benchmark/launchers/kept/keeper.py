"""Keeps one training process where a launcher put it: starts it, hands on its output, ends it.

``python keeper_process.py LAUNCHER`` is one, started by srun or by an actor of Ray; with torchrun,
MPI and Kubernetes it is part of the command (outside.py). It connects to the command at $DSMOE_HUB
(wire.py) and does what that says. A keeper that loses the command ends its process, and a process
whose keeper is killed reads the end of its standard input and ends itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Mapping

from dsmoe.benchmark.launchers.kept import wire
from dsmoe.benchmark.launchers.kept.place import VARIABLES, Place, host_name, place_by

#: The keeper as a program.
PROCESS = Path(__file__).with_name("keeper_process.py")
LOST = 1
# Variables of torchrun for its own process group, which is not that of the run.
FOREIGN = ("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE")
FOREIGN_PREFIX = "TORCHELASTIC_"


class Lost(Exception):
    """The command is gone, or cannot be reached."""


class Keeper:
    """The connection of process ``place`` to the command at ``hub``."""

    def __init__(self, place: Place, hub: tuple[str, int], token: str) -> None:
        self._place = place
        self._hub = hub
        self._token = token
        self._sending = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: int | None = None
        self._over = threading.Event()

    def serve(self) -> int:
        """Do what the command says until its end; the exit code that it names."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)
        try:
            with self._connected() as connection:
                self._connection = connection
                self._hello()
                threading.Thread(target=self._beat, daemon=True).start()
                return self._obey()
        except (Lost, OSError, ValueError) as error:
            print(f"dsmoe: rank {self._place.rank}: lost the command: {error}", file=sys.stderr)
            return LOST
        finally:
            self._over.set()
            self._end()

    def _connected(self) -> socket.socket:
        deadline = time.monotonic() + wire.CONNECT_SECONDS
        while True:
            try:
                found = socket.create_connection(self._hub, timeout=wire.BEAT_SECONDS)
                break
            except OSError as error:
                if time.monotonic() > deadline or self._asked:
                    raise Lost(f"{self._hub[0]} port {self._hub[1]}: {error}") from error
                time.sleep(0.2)
        found.settimeout(None)
        return found

    def _hello(self) -> None:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        self._send(
            {
                "token": self._token,
                "rank": self._place.rank,
                "local_rank": self._place.local_rank,
                "world": self._place.world,
                "host": host_name(),
                "address": self._connection.getsockname()[0],
                "port": port,
                "pid": os.getpid(),
            }
        )

    def _obey(self) -> int:
        lines, heard, told = wire.Lines(self._connection), time.monotonic(), False
        while True:
            messages = lines.read()
            if messages is None:
                raise Lost("its connection has ended")
            if messages:
                heard = time.monotonic()
            if time.monotonic() - heard > wire.SILENT_SECONDS:
                raise Lost(f"no message for {wire.SILENT_SECONDS:g} s")
            if self._asked and not told:
                told = True
                self._send({"asked": self._asked})
            for message in messages:
                if message.get("do") == "start":
                    self._start(message)
                elif message.get("do") == "end":
                    self._end()
                elif message.get("do") == "bye":
                    return int(message["code"])

    def _start(self, message: dict[str, Any]) -> None:
        self._end()
        place = self._place
        kept_out = {*FOREIGN, wire.TOKEN, *(k for k in os.environ if k.startswith(FOREIGN_PREFIX))}
        own = {name: text for name, text in os.environ.items() if name not in kept_out}
        own.setdefault("OMP_NUM_THREADS", str(max(1, cores() // message["on_host"])))
        own.setdefault("OMP_WAIT_POLICY", "passive")  # deepspeed_runner.py says why
        ranks = {"RANK": place.rank, "LOCAL_RANK": place.local_rank, "WORLD_SIZE": place.world}
        own.update({name: str(number) for name, number in ranks.items()})
        own.update(LOCAL_WORLD_SIZE=str(message["on_host"]), **message["environment"])
        try:
            process = subprocess.Popen(
                message["command"],
                env=own,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            self._send({"out": f"{message['command'][0]}: {error.strerror}"})
            self._send({"ended": 127, "pid": 0})
            return
        self._process = process
        threading.Thread(target=self._hand_on, args=(process,), daemon=True).start()
        if "input" in message:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.write(message["input"].encode())
                process.stdin.close()

    def _hand_on(self, process: subprocess.Popen[bytes]) -> None:
        """Send every line of the process, and then how it ended."""
        assert process.stdout is not None
        try:
            while True:
                line = process.stdout.readline(wire.LINE_BYTES)
                if not line:
                    break
                self._send({"out": line.decode("utf-8", "replace").rstrip("\r\n")})
            self._send({"ended": process.wait(), "pid": process.pid})
        except OSError:
            return  # the command is gone; _obey finds out by itself

    def _beat(self) -> None:
        while not self._over.wait(wire.BEAT_SECONDS):
            try:
                self._send({})
            except OSError:
                return

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending:
            self._connection.sendall(wire.encode(message))

    def _end(self) -> None:
        """End the process and what it started: SIGTERM, then SIGKILL."""
        process = self._process
        if process is None:
            return
        for number, seconds in (
            (signal.SIGTERM, wire.TERM_SECONDS),
            (signal.SIGKILL, wire.TERM_SECONDS),
        ):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
                break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has left behind
        self._process = None

    def _note(self, number: int, _: object) -> None:
        self._asked = number


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hub_of(environment: Mapping[str, str]) -> tuple[str, int]:
    """Address and port of the command; under Slurm the address is Slurm's own word for it."""
    address, _, port = environment[wire.HUB].rpartition(":")
    return address or environment["SLURM_LAUNCH_NODE_IPADDR"], int(port)


def main(launcher: str) -> int:
    place = place_by(launcher, os.environ)
    if place is None:
        names = ", ".join(VARIABLES[launcher])
        print(f"dsmoe: found no whole numbers in {names}", file=sys.stderr)
        return 2
    return Keeper(place, hub_of(os.environ), os.environ[wire.TOKEN]).serve()
