"""Processes that something else has started: torchrun, Kubernetes' PyTorchJob, mpirun.

Each of them runs the command. That of rank 0 leads: it does all that the command does, and has a
keeper for its own training process. The others are keepers. They find rank 0's port in a
TCPStore of torch at $MASTER_ADDR, which torchrun has already and rank 0 makes elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.launchers.kept.asking_keepers import ask_kept
from dsmoe.benchmark.launchers.kept.by_keepers import KeptRun
from dsmoe.benchmark.launchers.kept.hub import Hub
from dsmoe.benchmark.launchers.kept.keeper import PROCESS, Keeper
from dsmoe.benchmark.launchers.kept.place import VARIABLES, Place, place_by
from dsmoe.benchmark.preflight.asking import Reply, Way
from dsmoe.benchmark.run.layout import Layout
from dsmoe.benchmark.run.processes import Output
from dsmoe.benchmark.run.reasons import reason
from dsmoe.common.errors import EnvironmentProblem, UsageError
from dsmoe.hosts.host import Host

# A pod may wait for its image, which others have already.
MEET_SECONDS = 300.0
DEFAULT_PORT = 29500
END_SECONDS = 5.0
_KINDS = ("torchrun", "Open MPI", "MPICH")
_TORCHRUN = "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HEAD:29400 -m dsmoe run 16"


def started_by(environment: Mapping[str, str]) -> tuple[str, Place] | None:
    """What started this process as one of several, and its place; None for an ordinary start."""
    for kind in _KINDS:
        place = place_by(kind, environment)
        if place is not None and (kind != "torchrun" or environment.get("MASTER_ADDR")):
            return kind, place
    return None


def _said(environment: Mapping[str, str]) -> str:
    """Those of the variables that torchrun sets, for a message."""
    names = (*VARIABLES["torchrun"], "MASTER_ADDR")
    said = [f"{name}={environment[name][:20]}" for name in names if name in environment]
    return ", ".join(said) or "no RANK, WORLD_SIZE and MASTER_ADDR"


def why(environment: Mapping[str, str]) -> str:
    """Why the processes count as started from outside."""
    found = started_by(environment)
    assert found is not None
    kind, place = found
    return f"{place.world} processes by {kind}: {', '.join(VARIABLES[kind])}"


def follow(wanted: str, environment: Mapping[str, str]) -> int | None:
    """Be the keeper of this place to the end, where rank 0 leads; the exit code, which is rank 0's.

    None in rank 0, and where the processes are not started from outside.
    """
    found = started_by(environment)
    if found is None or found[1].rank == 0 or wanted not in ("auto", "torchrun"):
        return None
    store, key = _store(environment, leads=False)
    try:
        said = json.loads(store.get(key))
    except Exception as error:  # torch raises RuntimeError or its own DistStoreError
        raise EnvironmentProblem(
            f"rank {found[1].rank}: rank 0 did not say within {MEET_SECONDS:g} s where to meet "
            f"({' '.join(str(error).split())[:120]}); expected it at MASTER_ADDR "
            f"{environment['MASTER_ADDR']}: read its output"
        ) from error
    return Keeper(found[1], (environment["MASTER_ADDR"], said["port"]), said["token"]).serve()


class OutsideLauncher:
    """``torchrun``: as many processes as were started, where they are."""

    name = "torchrun"
    ends_with_processes = True

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        found = started_by(environment)
        if found is None:
            raise UsageError(
                f"--launcher torchrun: found {_said(environment)} in the environment; expected "
                "a RANK from 0 to below WORLD_SIZE, no smaller than LOCAL_RANK, and a MASTER_ADDR: "
                f"start it by torchrun, or by another launcher that sets them: {_TORCHRUN}"
            )
        self._kind, place = found
        if place.rank != 0:
            raise UsageError(f"found rank {place.rank}; expected rank 0 to lead")
        self._world = place.world
        self._hub = Hub(place.world, at_head=True)
        self._store, key = _store(environment, leads=True)
        self._store.set(key, json.dumps({"port": self._hub.port, "token": self._hub.token}))
        ranks = dict(zip(VARIABLES["torchrun"], (place.rank, place.local_rank, place.world)))
        own = {name: str(number) for name, number in ranks.items()}
        own.update(self._hub.variables(environment["MASTER_ADDR"]))
        self._keeper = subprocess.Popen(
            [sys.executable, str(PROCESS), "torchrun"],
            env={**environment, **own},
            start_new_session=True,
        )

    def hosts(self) -> list[Host]:
        self._gather()
        peers = [self._hub.peers[rank] for rank in range(self._world)]
        names = [(name, len(list(of))) for name, of in groupby(peers, lambda peer: peer.host)]
        counts = {count for _, count in names}
        if len(counts) > 1 or len({name for name, _ in names}) < len(names):
            has = ", ".join(f"{name} {count}" for name, count in names[:8])
            raise UsageError(
                f"found processes on hosts in this order: {has}; expected neighbouring ranks on a "
                "host, and the same number on each (mpirun: --map-by ppr:N:node)"
            )
        return [Host(name, count) for name, count in names]

    def lay_out(self, processes: int) -> Layout:
        if processes != self._world:
            raise UsageError(
                f"found {self._world} processes, started by {self._kind}; expected {processes}, "
                f"the number of GPUs of the case: start as many, or name {self._world}"
            )
        hosts = self.hosts()
        return Layout(tuple(host.name for host in hosts), hosts[0].slots)

    def check(self, job: Job) -> None:
        """Raises EnvironmentProblem where a keeper is lost by now."""
        lost = [peer for peer in self._hub.peers.values() if peer.lost()]
        if lost:
            raise EnvironmentProblem(
                f"host {lost[0].host}: rank {lost[0].rank}: {lost[0].gone}; start all again"
            )

    @contextlib.contextmanager
    def start(self, job: Job, log: Path) -> Iterator[KeptRun]:
        run = KeptRun(self._hub, job, log)
        try:
            yield run
        finally:
            run.end()
            run.close()

    def reason(self, code: int, output: Output, log: Path) -> str:
        return reason(code, output.marks, output.tail, log)

    def line(self, job: Job) -> str:
        return f"# the {self._world} processes run already, started by {self._kind}"

    def way(self) -> Way:
        return Way(
            self._ask,
            f"reached by {self._kind}",
            lambda name: f"read what the command says on {name}",
            "read the output of each process",
        )

    def distant_head(self, layout: Layout) -> str | None:
        return None

    def close(self, code: int) -> None:
        self._hub.close(code)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(END_SECONDS)
        self._keeper.kill()

    def _ask(self, hosts: Sequence[Host], script: str) -> list[Reply]:
        self._gather()
        peers = sorted(self._hub.peers.values(), key=lambda peer: peer.rank)
        first = {peer.host: peer.rank for peer in reversed(peers)}
        ranks = [first[host.name] for host in hosts]
        return ask_kept(self._hub, ranks, script, lambda: None, lambda: "")

    def _gather(self) -> None:
        """Wait for every keeper. Raises EnvironmentProblem."""
        deadline = time.monotonic() + MEET_SECONDS
        while self._hub.missing():
            if time.monotonic() > deadline:
                missing = self._hub.missing()
                ranks = ", ".join(map(str, missing[:8])) + (", ..." if missing[8:] else "")
                raise EnvironmentProblem(
                    f"rank {ranks} of {self._world} did not come within {MEET_SECONDS:g} s; "
                    "expected the same command in each process: read their output"
                )
            time.sleep(0.05)


def _store(environment: Mapping[str, str], leads: bool) -> tuple[Any, str]:
    """The store at $MASTER_ADDR, and the key under which rank 0 says where it listens."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    address = environment.get("MASTER_ADDR", "")
    port = environment.get("MASTER_PORT", str(DEFAULT_PORT))
    if not address or not port.isdigit():
        raise UsageError(
            f"found MASTER_ADDR {address!a:.60} and MASTER_PORT {port!a:.20}; expected the address "
            "of rank 0's host and a free port there (mpirun: -x MASTER_ADDR=HOST)"
        )
    theirs = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    key = f"dsmoe/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    limit = timedelta(seconds=MEET_SECONDS)
    try:
        store = TCPStore(
            address,
            int(port),
            is_master=leads and not theirs,
            timeout=limit,
            wait_for_workers=False,
        )
    except Exception as error:  # torch raises RuntimeError or its own DistNetworkError
        said = " ".join(str(error).split())[:160]
        raise EnvironmentProblem(
            f"MASTER_ADDR {address}, MASTER_PORT {port}: {said}; expected an address of rank 0's "
            "host and a port that is free there"
        ) from error
    return store, key
