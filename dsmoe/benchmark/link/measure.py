"""Run settings one after another on a cluster of namespaces, by ``dsmoe run`` on its first host."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping

from dsmoe.benchmark.link.settings import Setting
from dsmoe.benchmark.preflight.probe import cores
from dsmoe.benchmark.results.record import RunRecord
from dsmoe.benchmark.results.store import RECORDS, read_records
from dsmoe.benchmark.run.processes import end_session
from dsmoe.common.interrupts import StopSignals
from dsmoe.common.places import import_root
from dsmoe.hosts.spaces.namespace_cluster import INTERFACE, HostCluster

# What a run prints that is worth a line here.
_SHOWN = ("  iteration ", "  warning: ", "  note: ", "error: ", "failed ")
_ERROR = "error: "


@dataclass(frozen=True)
class LinkPlace:
    """Hosts of the run: ``hosts`` x ``per_host`` processes on ``device``; files go to ``output``.

    ``shared`` are options of ``dsmoe run`` that all settings have and that make no setting.
    """

    cluster: HostCluster
    per_host: int
    device: str
    output: Path
    shared: tuple[str, ...] = ()

    @property
    def hosts(self) -> int:
        return len(self.cluster.names)

    @property
    def link_name(self) -> str:
        """What records call the link: that it is none between machines, its rate and delay."""
        link = self.cluster.link
        return " ".join(["namespaces", *filter(None, [link.rate, link.delay])])


def host_variables(hosts: int, per_host: int, device: str) -> dict[str, dict[str, str]]:
    """What is set on each host: with GPUs, which of them are its own, and its name for NCCL."""
    if device != "cuda":
        return {}
    return {
        f"n{number + 1}": {
            "NCCL_HOSTID": f"n{number + 1}",
            "CUDA_VISIBLE_DEVICES": ",".join(
                str(number * per_host + gpu) for gpu in range(per_host)
            ),
        }
        for number in range(hosts)
    }


@dataclass(frozen=True)
class MeasuredLink:
    """A setting and its record; ``reason`` where there is none, or where the run failed."""

    setting: Setting
    place: LinkPlace
    record: RunRecord | None
    reason: str | None

    @property
    def seconds(self) -> list[float]:
        return self.record.step_seconds if self.record else []

    def bytes_of(self, direction: str) -> list[int]:
        """``sent`` or ``received``: by host, the median of the measured iterations' bytes."""
        each = self.record.link.get(direction, []) if self.record else []
        return [int(statistics.median_low(host)) for host in each]

    def to_dict(self) -> dict[str, Any]:
        """The setting as one JSON object."""
        record, case = self.record, self.setting.case
        return {
            "setting": self.setting.name,
            "hosts": self.place.hosts,
            "per_host": self.place.per_host,
            "rate": self.place.cluster.link.rate,
            "delay": self.place.cluster.link.delay,
            "global_batch_size": case.global_batch_size,
            "micro_batches": case.micro_batches,
            "expert_parallel": case.parallel.expert_parallel_size,
            "zero_stage": case.parallel.zero_stage,
            "seconds": record.median_seconds if record else None,
            "n": len(self.seconds),
            "spread": record.spread if record else None,
            "bytes_sent": self.bytes_of("sent"),
            "bytes_received": self.bytes_of("received"),
            "losses": record.losses if record else [],
            "case": record.case if record else case.to_dict(),
            "run_folder": str(self.place.output / record.run_folder) if record else None,
            "status": "failed" if self.reason else "ok",
            "reason": self.reason,
        }


def measure(
    setting: Setting, place: LinkPlace, stop: StopSignals, say: Callable[[str], None]
) -> MeasuredLink:
    """Train ``setting`` and read its record; what happens meanwhile goes to ``say``.

    Raises Interrupted, once everything that was started has ended.
    """
    records = place.output / RECORDS
    before = len(read_records(records)) if records.exists() else 0
    code, last = _run(_command(setting, place), _environment(place), place, stop, say)
    found = read_records(records)[before:] if records.exists() else []
    if not found:
        return MeasuredLink(setting, place, None, last or f"dsmoe run ended with exit code {code}")
    return MeasuredLink(setting, place, found[-1], found[-1].reason or found[-1].evaluation_error)


def _command(setting: Setting, place: LinkPlace) -> list[str]:
    hostfile = place.output / f"hostfile_{place.hosts}x{place.per_host}"
    lines = [f"{name} slots={place.per_host}\n" for name in place.cluster.names]
    place.output.mkdir(parents=True, exist_ok=True)
    hostfile.write_text("".join(lines), encoding="utf-8")
    files = ["--hostfile", str(hostfile.absolute()), "--output", str(place.output.absolute())]
    run = [sys.executable, "-m", "dsmoe", "run", str(place.hosts * place.per_host)]
    return [*run, *place.shared, *setting.words, *files, "--link", place.link_name]


def _environment(place: LinkPlace) -> dict[str, str]:
    """The head's variables; the launcher hands those of NCCL, gloo and OpenMP to all hosts."""
    paths = [str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    added = {"PYTHONPATH": os.pathsep.join(paths)}
    # All hosts share this machine's cores.
    added["OMP_NUM_THREADS"] = str(max(1, cores() // (place.hosts * place.per_host)))
    if place.hosts > 1 and place.device == "cuda":
        added.update(NCCL_SOCKET_IFNAME=INTERFACE, NCCL_IB_DISABLE="1")
    else:  # the run finds gloo's interface itself
        own = {name: text for name, text in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
        return {**added, **own, "PYTHONPATH": added["PYTHONPATH"]}
    return {**os.environ, **added}


def _run(
    command: list[str],
    environment: Mapping[str, str],
    place: LinkPlace,
    stop: StopSignals,
    say: Callable[[str], None],
) -> tuple[int, str | None]:
    """The exit code of ``command`` on the first host, and its error."""
    head = place.cluster.names[0]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with stop.held():
        process = place.cluster.start(head, command, env=dict(environment), **pipes)
    error = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            line = line.rstrip()
            if line.startswith(_ERROR):
                error = line[len(_ERROR) :]
            if line.startswith(_SHOWN):
                say(line)
        return process.wait(), error
    finally:
        end_session(process.pid)
        process.wait()
