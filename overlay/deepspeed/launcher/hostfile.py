"""Reads the host file strictly, and selects the slots of a run.

One ``NAME slots=N`` a line; blank lines and CRLF are fine. Comments, a byte-order mark, ``lots=8``,
counts outside 1 to MAX_SLOTS, repeated hosts, an empty file and names with another meaning to ssh,
pdsh or ``--include`` are errors that name file and line.
"""

from __future__ import annotations

import collections
import os
import re
from pathlib import Path
from typing import Any, Callable

from deepspeed.utils import logger

from .errors import LaunchError

MAX_SLOTS = 1024
MAX_BYTES = 4 << 20
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?:{_BYTE}\.){{3}}{_BYTE}")


class HostPool(collections.OrderedDict):
    """Host name -> slots, in the file's order; ``where`` has ``file:line`` of each."""

    def __init__(self) -> None:
        super().__init__()
        self.where: dict[str, str] = {}


def usable_name(name: str) -> bool:
    """Whether ``name`` is a host name or IPv4 address without another meaning to ssh and pdsh."""
    if len(name) > 253 or not _NAME.fullmatch(name):
        return False
    return bool(_IPV4.fullmatch(name)) or not re.fullmatch(r"[0-9.]+", name)


def read(path: str) -> HostPool | None:
    """The hosts in ``path``; None if there is no such file. Raises LaunchError."""
    if path == os.devnull:
        return None
    if not Path(path).exists():
        logger.warning(f"no host file {path}: the processes start on this machine")
        return None
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise LaunchError(f"{path}: the host file cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise LaunchError(f"{path}: found over {MAX_BYTES} bytes, expected a host file")
    if data.startswith(b"\xef\xbb\xbf"):
        raise LaunchError(
            f"{path}:1: found a byte-order mark, expected 'NAME slots=N'; save it as UTF-8 without"
        )
    pool = HostPool()
    seen: dict[str, str] = {}
    for number, line in enumerate(re.split(rb"\r\n|\r|\n", data), start=1):
        where = f"{path}:{number}"
        _add_line(pool, seen, line.decode("utf-8", "backslashreplace"), where)
    if not pool:
        raise LaunchError(f"{path}: found no host, expected at least one 'NAME slots=N' line")
    return pool


def _add_line(pool: HostPool, seen: dict[str, str], line: str, where: str) -> None:
    words = line.split()
    if not words:
        return
    plain = line.replace("\t", " ").isprintable()
    if len(words) != 2 or not words[1].startswith("slots=") or not plain:
        raise LaunchError(f"{where}: found {line[:60]!a}, expected 'NAME slots=N'")
    name, count = words[0], words[1][len("slots=") :]
    if not usable_name(name):
        raise LaunchError(
            f"{where}: found the host name {name[:60]!a}, expected letters, digits, '-', '_' "
            "and '.', or an IPv4 address"
        )
    if not re.fullmatch("[0-9]{1,9}", count) or not 1 <= int(count) <= MAX_SLOTS:
        raise LaunchError(
            f"{where}: found the slot count {count[:60]!a}, expected 1 to {MAX_SLOTS}"
        )
    if name.lower() in seen:
        raise LaunchError(
            f"{where}: found the host {name} again, first at {seen[name.lower()]}; expected each "
            "host once"
        )
    seen[name.lower()] = pool.where[name] = where
    pool[name] = int(count)


def check_named(path: str | None, default: str) -> str:
    """The host file to read: ``default``, or ``path``, which must exist if it was named.

    /dev/null means no host file: this machine alone, even if ``default`` exists.
    """
    if path is None:
        return default
    if path != os.devnull and not Path(path).is_file():
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
