"""Which source of hosts to take, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from dsmoe.common.errors import UsageError
from dsmoe.hosts.sources import listed, local, ray, slurm
from dsmoe.hosts.sources.found import Found


@dataclass(frozen=True)
class WantedHosts:
    """What the user says about the source of hosts; None where nothing is said.

    ``source`` is "ray", "slurm", "list" or "local"; ``hosts`` the text of ``--hosts`` and
    ``hosts_file`` the file of ``--hosts-file``; ``ray_address`` and ``ray_seconds`` (the limit of
    each answer) are for Ray; ``any_device`` allows Ray nodes without GPUs (``--slots`` is given).
    """

    source: str | None = None
    hosts: str | None = None
    hosts_file: Path | None = None
    ray_address: str | None = None
    ray_seconds: float = 30.0
    any_device: bool = False


def find(wanted: WantedHosts, env: Mapping[str, str] = os.environ) -> Found:
    """The hosts of the source that is ``wanted``, or of the first that is clearly present.

    The order: a list given on the command line; the Ray cluster that RAY_ADDRESS or --ray-address
    names; the Slurm job around us; a Ray cluster running on this machine; this machine. A source
    that is present and fails is an error, never a reason to take the next one.
    """
    by_hand = wanted.hosts is not None or wanted.hosts_file is not None
    if wanted.source not in (None, "list") and by_hand:
        raise UsageError(f"--from {wanted.source} does not go with --hosts or --hosts-file")
    if wanted.source not in (None, "ray") and wanted.ray_address:
        raise UsageError(f"--from {wanted.source} does not go with --ray-address")
    if by_hand and wanted.ray_address:
        raise UsageError("--ray-address does not go with --hosts or --hosts-file")
    forced = f"--from {wanted.source}" if wanted.source else ""
    if by_hand or wanted.source == "list":
        return _list(wanted, forced)
    address = wanted.ray_address or env.get("RAY_ADDRESS", "")
    if wanted.source == "ray":
        return _ray(wanted, address or "auto", f"{forced}, address {address or 'auto'}")
    if wanted.source == "slurm":
        return slurm.find(env, forced)
    if wanted.source == "local":
        return local.find(forced)
    if address:
        origin = "--ray-address" if wanted.ray_address else "RAY_ADDRESS"
        return _ray(wanted, address, f"{origin} is {address}")
    if slurm.in_job(env):
        return slurm.find(env, "SLURM_JOB_NODELIST is set")
    if ray.installed():
        try:
            return _ray(wanted, "auto", "a Ray cluster runs on this machine")
        except ray.NoCluster:
            return local.find("no list, no RAY_ADDRESS, no Slurm job, no running Ray cluster")
    return local.find("no list, no RAY_ADDRESS, no Slurm job, no Ray here")


def _ray(wanted: WantedHosts, address: str, reason: str) -> Found:
    return ray.find(address, wanted.ray_seconds, reason, any_device=wanted.any_device)


def _list(wanted: WantedHosts, forced: str) -> Found:
    if wanted.hosts is not None:
        candidates = listed.parse_hosts_option(wanted.hosts)
        reason = "--hosts was given"
    elif wanted.hosts_file is not None:
        candidates = listed.read_hosts_file(wanted.hosts_file)
        reason = f"--hosts-file {wanted.hosts_file} was given"
    else:
        raise UsageError(f"{forced} needs --hosts or --hosts-file")
    return Found(source="list", reason=reason, candidates=candidates, device="unstated")
