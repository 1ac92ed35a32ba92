"""The host file as the launcher reads it, and the slots of it that a run takes.

The grammar is in host_grammar.py, which dsmoe shares.
"""

from __future__ import annotations

import collections
import os
import stat
from pathlib import Path
from typing import Any, Callable

from deepspeed.utils import logger

from . import host_grammar
from .errors import LaunchError


class HostPool(collections.OrderedDict):
    """Host name -> slots, in the file's order; ``where`` has ``file:line`` of each."""

    def __init__(self) -> None:
        super().__init__()
        self.where: dict[str, str] = {}


def read(path: str) -> HostPool | None:
    """The hosts in ``path``; None if there is no such file. Raises LaunchError."""
    if path == os.devnull:
        return None
    try:
        # A FIFO would wait for a writer, a device may never end.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            raise LaunchError(f"{path}: found no regular file, expected a host file")
        with Path(path).open("rb") as stream:
            data = stream.read(host_grammar.MAX_BYTES + 1)
    except FileNotFoundError:
        logger.warning(f"no host file {path}: the processes start on this machine")
        return None
    except LaunchError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise LaunchError(f"{path[:200]!a}: the host file cannot be read: {reason}") from None
    pool = HostPool()
    try:
        for name, slots, number in host_grammar.parse(data, path):
            pool[name], pool.where[name] = slots, f"{path}:{number}"
    except host_grammar.GrammarError as error:
        raise LaunchError(str(error)) from None
    return pool


def check_named(path: str | None, default: str) -> str:
    """The host file to read: ``default``, or ``path``, which must exist if it was named.

    /dev/null means no host file: this machine alone, even if ``default`` exists.
    """
    if path is None:
        return default
    # os.path.isfile, not Path: False for every path that cannot be asked, on all versions.
    if path != os.devnull and not os.path.isfile(path):  # noqa: PTH113
        raise LaunchError(f"--hostfile {path}: found no such file; get_hostfiles.py writes one")
    return path


def local_slots(devices: int, wanted: int) -> int:
    """Processes on this machine with ``devices`` GPUs; ``wanted`` is --num_gpus (-1: not given)."""
    if devices == 0:
        devices = max(wanted, 1)
        logger.warning(f"no GPU here: starting {devices} process(es) on the CPU")
    elif wanted > devices:
        raise LaunchError(f"--num_gpus {wanted}: this machine has {devices} GPU(s)")
    return devices


def chosen(args: Any, pool: Any, parse: Callable[..., Any]) -> dict[str, list[int]]:
    """Host -> slot numbers of this run: ``pool`` after --include, --exclude and --num_*.

    ``parse`` is runner.parse_inclusion_exclusion. Raises LaunchError for an unknown host or slot.
    """
    try:
        active = parse(pool, args.include, args.exclude)
    except ValueError as error:
        raise LaunchError(
            f"--include/--exclude: {error}; expected NAME or NAME:SLOT,SLOT, with @ between hosts, "
            "each of them a host of this run and once"
        ) from None
    if args.num_nodes == 0 or args.num_gpus == 0:
        raise LaunchError("found 0 for --num_nodes or --num_gpus, expected at least 1")
    if args.num_nodes > len(active):
        raise LaunchError(
            f"--num_nodes {args.num_nodes}: {args.hostfile} has {len(active)} host(s)"
        )
    if args.num_nodes > 0:
        active = collections.OrderedDict(list(active.items())[: args.num_nodes])
    if args.num_gpus > 0:
        for host, slots in active.items():
            if args.num_gpus > len(slots):
                where = getattr(pool, "where", {}).get(host, host)
                raise LaunchError(
                    f"{where}: {host} has slots={len(slots)}, fewer than --num_gpus "
                    f"{args.num_gpus}; lower it, or exclude the host with --exclude {host}"
                )
            active[host] = slots[: args.num_gpus]
    if not active:
        raise LaunchError("no host is left after --include and --exclude")
    return active
