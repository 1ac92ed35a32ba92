"""Which source of hosts to take, and why."""

from __future__ import annotations

import argparse
import os
from typing import Mapping

from dsmoe.common.errors import UsageError
from dsmoe.hosts.sources import listed, local, ray, slurm
from dsmoe.hosts.sources.found import Found


def find(args: argparse.Namespace, env: Mapping[str, str] = os.environ) -> Found:
    """The hosts of the source that ``args`` force, or of the first that is clearly present.

    The order: a list given on the command line; the Ray cluster that RAY_ADDRESS or --ray-address
    names; the Slurm job around us; a Ray cluster running on this machine; this machine. A source
    that is present and fails is an error, never a reason to take the next one.
    """
    listed = args.hosts is not None or args.hosts_file is not None
    if args.source not in (None, "list") and listed:
        raise UsageError(f"--from {args.source} does not go with --hosts or --hosts-file")
    if args.source not in (None, "ray") and args.ray_address:
        raise UsageError(f"--from {args.source} does not go with --ray-address")
    if listed and args.ray_address:
        raise UsageError("--ray-address does not go with --hosts or --hosts-file")
    forced = f"--from {args.source}" if args.source else ""
    if listed or args.source == "list":
        return _list(args, forced)
    address = args.ray_address or env.get("RAY_ADDRESS", "")
    if args.source == "ray":
        return _ray(args, address or "auto", f"{forced}, address {address or 'auto'}")
    if args.source == "slurm":
        return slurm.find(env, forced)
    if args.source == "local":
        return local.find(forced)
    if address:
        origin = "--ray-address" if args.ray_address else "RAY_ADDRESS"
        return _ray(args, address, f"{origin} is {address}")
    if slurm.in_job(env):
        return slurm.find(env, "SLURM_JOB_NODELIST is set")
    if ray.installed():
        try:
            return _ray(args, "auto", "a Ray cluster runs on this machine")
        except ray.NoCluster:
            return local.find("no list, no RAY_ADDRESS, no Slurm job, no running Ray cluster")
    return local.find("no list, no RAY_ADDRESS, no Slurm job, no Ray here")


def _ray(args: argparse.Namespace, address: str, reason: str) -> Found:
    return ray.find(address, args.ray_timeout, reason, any_device=args.slots is not None)


def _list(args: argparse.Namespace, forced: str) -> Found:
    if args.hosts is not None:
        candidates = listed.parse_hosts_option(args.hosts)
        reason = "--hosts was given"
    elif args.hosts_file is not None:
        candidates = listed.read_hosts_file(args.hosts_file)
        reason = f"--hosts-file {args.hosts_file} was given"
    else:
        raise UsageError(f"{forced} needs --hosts or --hosts-file")
    return Found(source="list", reason=reason, candidates=candidates, device="unstated")
