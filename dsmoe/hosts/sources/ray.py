"""The live nodes of a running Ray cluster and their GPUs. Never starts a cluster.

Only live entries of ``ray.nodes()`` count, with their own ``GPU`` resource: the keys of
``ray.cluster_resources()`` also hold ``node:__internal_head__`` in newer releases.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dsmoe.common.errors import HostGone, HostProblem, SourceProblem
from dsmoe.hosts.host import Candidate, check_name, shown
from dsmoe.hosts.sources.found import Found
from dsmoe.hosts.sources.ray_client import MARK

CONNECT_SECONDS = 5.0


class NoCluster(SourceProblem):
    """No Ray, or no running cluster at the address ``auto``."""


def installed() -> bool:
    """Whether ``import ray`` would find Ray; does not import it."""
    return importlib.util.find_spec("ray") is not None


class RayCluster:
    """A connection to a running cluster through a process of ray_client.py.

    ``instead``: the option that does without Ray, for messages. Raises NoCluster if ``address`` is
    "auto" and nothing runs on this machine; SourceProblem if Ray is missing, the address does not
    answer within ``seconds``, or Ray refuses.
    """

    def __init__(self, address: str, seconds: float, instead: str = "--from local") -> None:
        self.address = address
        self.seconds = seconds
        self._instead = instead
        if not installed():
            raise NoCluster(f"found no 'ray' package in {sys.executable}; pip install ray there")
        if address == "local":
            raise SourceProblem(
                "found the Ray address 'local', which starts a new cluster; give "
                "the address of a running one, or 'auto'"
            )
        _refuse_if_closed(address, min(CONNECT_SECONDS, seconds), instead)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ray_client.py")), address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._pump, daemon=True).start()
        self._first: list[dict[str, Any]] | None = None
        try:
            self._first = self._read()
        except BaseException:
            self.close()
            raise

    def nodes(self) -> list[dict[str, Any]]:
        """All nodes, dead ones too, as ray_client.py describes them; asked anew at each call."""
        if self._first is not None:
            rows, self._first = self._first, None
            return rows
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except OSError:
            raise SourceProblem(f"lost the connection to Ray at {self.address}") from None
        return self._read()

    def close(self) -> None:
        """End the connection; the cluster stays as it is."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def _pump(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read(self) -> list[dict[str, Any]]:
        end = time.monotonic() + self.seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                self._process.kill()
                raise SourceProblem(
                    f"Ray at {shown(self.address)} did not answer within {self.seconds:g} s; "
                    f"check the address (ray status), or give {self._instead} (dsmoe hosts: or "
                    "more seconds with --ray-timeout)"
                ) from None
            if line is None:
                code = self._process.wait()
                raise SourceProblem(
                    f"Ray at {shown(self.address)}: its client ended with status {code} without "
                    "an answer; try 'ray status' there"
                )
            if line.startswith(MARK):
                answer = json.loads(line[len(MARK) :])
                if "error" in answer:
                    raise _refusal(self.address, answer["kind"], answer["error"])
                rows: list[dict[str, Any]] = answer["nodes"]
                return rows


def find(address: str, seconds: float, reason: str, any_device: bool) -> Found:
    """The live hosts of the cluster at ``address``, the head first, then by address.

    Nodes without GPUs are left out, with a warning; ``any_device`` (``--slots`` was given) takes
    them if no node has any. Raises SourceProblem without a usable node, and HostProblem for two
    live nodes at one address (a restarted one is listed twice until Ray drops the old entry).
    """
    cluster = RayCluster(address, seconds)
    try:
        rows = [row for row in cluster.nodes() if row["alive"]]
        rows.sort(key=lambda row: (not row["head"], _order(row["address"])))
        chosen = [row for row in rows if row["gpus"] > 0]
        left_out = [row for row in rows if row["gpus"] <= 0]
        device = "gpu"
        if not chosen and any_device:
            chosen, left_out, device = rows, [], "cpu"
        if not chosen:
            raise SourceProblem(
                f"found {len(rows)} live Ray node(s) and no GPU among them; start Ray with "
                "--num-gpus, or give --slots N for N CPU processes a host"
            )
        candidates = [_candidate(row, device) for row in chosen]
        _refuse_shared_addresses(candidates)
    except BaseException:
        cluster.close()
        raise
    wanted = {row["id"]: row["address"] for row in chosen}

    def recheck() -> None:
        alive = {row["id"] for row in cluster.nodes() if row["alive"]}
        gone = sorted(wanted[node] for node in wanted if node not in alive)
        if gone:
            raise HostGone(
                f"{', '.join(gone)} left the Ray cluster while the files were made; "
                "nothing was written; run again"
            )

    return Found(
        source="ray",
        reason=reason,
        candidates=candidates,
        device=device,
        warnings=[
            f"the Ray {'head' if row['head'] else 'node'} {row['address']} has no GPU and is "
            "left out"
            for row in left_out
        ],
        no_slots_hint="give --slots N",
        recheck=recheck,
        close=cluster.close,
    )


def _candidate(row: dict[str, Any], device: str) -> Candidate:
    where = f"Ray node {row['id'][:8]}"
    name = check_name(row["address"], where)
    if device == "cpu":
        return Candidate(name, None, where)
    if row["gpus"] != int(row["gpus"]):
        raise HostProblem(f"{where}: found {row['gpus']:g} GPUs at {name}, expected a whole number")
    return Candidate(name, int(row["gpus"]), where)


def _refuse_shared_addresses(candidates: list[Candidate]) -> None:
    counts = Counter(candidate.name for candidate in candidates)
    for name, count in counts.items():
        if count > 1:
            raise HostProblem(
                f"found {count} live Ray nodes at {name}, expected one a host; after a "
                "restart wait until Ray drops the old one (ray status), or use --from list"
            )


def _order(address: str) -> tuple[int, int, str]:
    try:
        return (0, int(ipaddress.ip_address(address)), "")
    except ValueError:
        return (1, 0, address)


def _refuse_if_closed(address: str, seconds: float, instead: str) -> None:
    """Refuse an address where nothing listens, at once: Ray itself tries for two minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, OverflowError) as error:
        raise SourceProblem(
            f"no connection to Ray at {shown(address)}: {getattr(error, 'strerror', '') or error}; "
            f"check the address of Ray (RAY_ADDRESS), or give {instead}"
        ) from None


def _refusal(address: str, kind: str, text: str) -> SourceProblem:
    line = " ".join(text.split())[:200]
    if kind == "ConnectionError" and "any running Ray" in line:
        return NoCluster("found no running Ray cluster on this machine; 'ray start' makes one")
    if kind in ("ImportError", "ModuleNotFoundError"):
        return NoCluster(f"'import ray' fails in {sys.executable}: {line}")
    return SourceProblem(f"Ray at {shown(address)} refused: {kind}: {line}")
