"""Actors of a running Ray cluster in one placement group: no ssh, and no host file.

Ray Train's TorchTrainer would make a process group and choose a device in its own worker, and
would run the training in that process. Here the process that trains is the same for every
launcher, so plain actors serve: each holds a host's GPUs and starts that host's keepers.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.launchers.kept.asking_keepers import ask_kept
from dsmoe.benchmark.launchers.kept.by_keepers import KeptRun
from dsmoe.benchmark.launchers.kept.hub import Hub
from dsmoe.benchmark.preflight.asking import Reply, Way
from dsmoe.benchmark.run.layout import Layout
from dsmoe.benchmark.run.processes import Output, session
from dsmoe.benchmark.run.reasons import reason
from dsmoe.common.errors import UsageError
from dsmoe.common.typed import program
from dsmoe.hosts.host import Host
from dsmoe.hosts.identity import is_this_machine
from dsmoe.hosts.sources.ray import RayCluster

DRIVER = Path(__file__).with_name("ray_driver.py")
# Of which Ray's import takes half a minute on a machine with other work.
ANSWER_SECONDS = 90.0
# What is free when the command looks may be taken when it asks.
PLACE_SECONDS = 20
END_SECONDS = 5.0
# As DeepSpeed's launcher hands them on to other hosts.
_HANDED_ON = ("NCCL", "PYTHON", "GLOO", "OMP_", "UCX", "MV2", "DSMOE_")
# Ties a bundle to a node, and takes nothing of it.
_TOUCH = 0.001


class RayLauncher:
    """``ray``: the live nodes of the cluster at ``address``."""

    name = "ray"
    ends_with_processes = False

    def __init__(self, address: str, environment: Mapping[str, str] = os.environ) -> None:
        self._address, self._environment = address, environment
        cluster = RayCluster(address, ANSWER_SECONDS, "--launcher local")
        try:
            rows = [row for row in cluster.nodes() if row["alive"]]
        finally:
            cluster.close()
        rows.sort(key=lambda row: (not row["head"], row["address"]))
        self._kind = "GPU" if any(row["gpus"] >= 1 for row in rows) else "CPU"
        self._free = {row["address"]: _whole(row, self._kind, free=True) for row in rows}
        self._all = {row["address"]: _whole(row, self._kind, free=False) for row in rows}

    def hosts(self) -> list[Host]:
        return [Host(name, count) for name, count in self._all.items() if count]

    def lay_out(self, processes: int) -> Layout:
        """The fewest hosts whose free GPUs hold the processes, equally many on each."""
        for hosts in range(1, len(self._free) + 1):
            devices, rest = divmod(processes, hosts)
            fit = [name for name, free in self._free.items() if free >= devices]
            if not rest and len(fit) >= hosts:
                return Layout(tuple(fit[:hosts]), devices)
        has = ", ".join(f"{n} {self._free[n]} of {self._all[n]}" for n in list(self._all)[:8])
        raise UsageError(
            f"{processes} processes need equally many free {self._kind}s on each of some hosts; "
            f"found {has or 'no node'}: end what holds them (ray status), add nodes with "
            "ray start, or name another number"
        )

    def check(self, job: Job) -> None:
        """The driver says by itself what is wrong."""

    @contextlib.contextmanager
    def start(self, job: Job, log: Path) -> Iterator[KeptRun]:
        hub = Hub(job.layout.hosts * job.layout.devices)
        run = KeptRun(hub, job, log)
        try:
            with self._driver(hub, job.layout.names, job.layout.devices, run.writing) as driver:
                run.launcher_code = driver.poll
                try:
                    yield run
                finally:
                    run.end()
                    hub.close()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        driver.wait(END_SECONDS)
        finally:
            run.close()

    def reason(self, code: int, output: Output, log: Path) -> str:
        return reason(code, output.marks, output.tail, log)

    def line(self, job: Job) -> str:
        bundle = f"{job.layout.devices} {self._kind}s"
        return f"# a placement group of {bundle} on each of: {', '.join(job.layout.names)}"

    def way(self) -> Way:
        return Way(
            self._ask,
            "reached by Ray",
            lambda name: f"see `ray status`: is {name} alive?",
            f"{program('check')} --launcher ray",
        )

    def distant_head(self, layout: Layout) -> str | None:
        return None if is_this_machine(layout.names[0]) else layout.names[0]

    def close(self, code: int) -> None:
        """Each placement group ends with its driver."""

    @contextlib.contextmanager
    def _driver(
        self, hub: Hub, names: Sequence[str], each: int, out: int, asking: bool = False
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The driver at work: a keeper for each process, or one a host that takes no GPU."""
        unset: dict[str, str | None] = {"CUDA_VISIBLE_DEVICES": None} if asking else {}
        world, hosts = len(names) * each, []
        for number, name in enumerate(names):
            variables = [
                {**self._variables(number * each + local, local, world, hub), **unset}
                for local in range(each)
            ]
            bundle = self._bundle(name, 0 if asking else each)
            hosts.append({"address": name, "resources": bundle, "environments": variables})
        spec = {"hosts": hosts, "port": hub.port, "wait": PLACE_SECONDS}
        words = [sys.executable, str(DRIVER), self._address]
        with session(words, dict(self._environment), out) as driver:
            assert driver.stdin is not None
            with contextlib.suppress(OSError):  # it ended already; its words say why
                driver.stdin.write((json.dumps(spec) + "\n").encode())
                driver.stdin.flush()
            yield driver

    def _bundle(self, name: str, count: int) -> dict[str, float]:
        held: dict[str, float] = {self._kind: count} if count else {}
        return {**held, f"node:{name}": _TOUCH}

    def _variables(self, rank: int, local_rank: int, world: int, hub: Hub) -> dict[str, str | None]:
        """Of one keeper, beside those of the Ray worker that starts it."""
        handed_on = {k: v for k, v in self._environment.items() if k.startswith(_HANDED_ON)}
        numbers = {"RANK": rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world}
        places = {name: str(number) for name, number in numbers.items()}
        return {**handed_on, **hub.variables(""), **places}

    def _ask(self, hosts: Sequence[Host], script: str) -> list[Reply]:
        hub = Hub(len(hosts))
        reading, writing = os.pipe()
        said = Output(os.fdopen(reading, "rb"), Path(os.devnull))
        try:
            with self._driver(hub, [h.name for h in hosts], 1, writing, asking=True) as driver:
                try:
                    ranks = list(range(len(hosts)))
                    words = lambda: "; ".join(said.tail[-2:])  # noqa: E731
                    return ask_kept(hub, ranks, script, driver.poll, words)
                finally:
                    hub.close()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        driver.wait(END_SECONDS)
        finally:
            os.close(writing)


def _whole(row: dict[str, Any], kind: str, free: bool) -> int:
    """How many GPUs or CPUs a node has, or has free."""
    name = f"{kind.lower()}s"
    if free and row.get("free"):
        return int(row["free"][name])
    return int(row[name])
