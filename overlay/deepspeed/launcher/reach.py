"""Which hosts are this machine, which accept a login, and the address of the first host."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from typing import Any, Mapping, Sequence

from deepspeed.utils import logger

from .errors import LaunchError
from .host_grammar import usable_name
from .lifeline import INTERVAL, PROBES

CONNECT_SECONDS = 10
REACH_SECONDS = 2 * CONNECT_SECONDS
SSH_OPTIONS = (
    f"-o BatchMode=yes -o ConnectTimeout={CONNECT_SECONDS} "
    f"-o ServerAliveInterval={INTERVAL} -o ServerAliveCountMax={PROBES}"
)
_MARK = "deepspeed-reached"


def ssh_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for pdsh: ssh without questions, and with keep-alive to detect a lost host.

    The user's PDSH_SSH_ARGS_APPEND goes first, because ssh takes an option's first value.
    """
    own = environ.get("PDSH_SSH_ARGS_APPEND", "")
    words = f"{own} {SSH_OPTIONS}".strip()
    return {**environ, "PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": words}


def is_this_machine(name: str) -> bool:
    """Whether ``name`` is this machine: its own name, or one that resolves to its address."""
    if name in ("localhost", socket.gethostname(), socket.gethostname().split(".")[0]):
        return True
    return any(_is_own(address) for address in _addresses(name))


def _addresses(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(entry[4][0]) for entry in found]


def _is_own(address: str) -> bool:
    # The source address towards one of the machine's own addresses is that address.
    return _is_loopback(address) or _source_towards(address) == address


def elsewhere(args: Any, hosts: Sequence[str]) -> bool:
    """Whether processes start on other machines, or on this one by --force_multi."""
    return args.force_multi or len(hosts) > 1 or not is_this_machine(hosts[0])


def master_address(args: Any, hosts: Sequence[str], remote: bool) -> str:
    """The address at which all processes find the first of ``hosts``: --master_addr if given.

    Else, for one host, the loopback address; for several, the address at which ssh reached the
    first, unless that is a loopback address. With pdsh this logs in to every host, without a
    password. Raises LaunchError with a line for each host that refuses, or without an address.
    """
    given = args.master_addr
    # A colon: an IPv6 address, possibly with a zone.
    if given and not (usable_name(given) or re.fullmatch(r"[0-9A-Fa-f:.]+(%\w+)?", given)):
        raise LaunchError(
            f"--master_addr {given[:60]!a}: expected a host name or an address of {hosts[0]}"
        )
    reached = reach(hosts) if remote and args.launcher.lower() == "pdsh" else {}
    address = given or ("127.0.0.1" if len(hosts) == 1 else _head_address(hosts, reached))
    logger.info(f"the address of the head, {hosts[0]}, is {address}")
    return address


def _head_address(hosts: Sequence[str], reached: Mapping[str, str]) -> str:
    head = hosts[0]
    candidates = [reached.get(head, ""), *_addresses(head)]
    if is_this_machine(head):
        candidates += [_source_towards(reached.get(host) or host) for host in hosts[1:]]
    for address in candidates:
        if address and not _is_loopback(address):
            return address
    raise LaunchError(
        f"found no address by which other hosts reach {head} (found: "
        f"{', '.join(filter(None, candidates)) or 'none'}); give --master_addr"
    )


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "localhost")


def _source_towards(host: str) -> str:
    """This machine's source address towards ``host``; "" if there is no route. Sends nothing."""
    for address in _addresses(host):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, 9))
                return str(probe.getsockname()[0])
            except OSError:
                continue
    return ""


def reach(hosts: Sequence[str]) -> dict[str, str]:
    """Log in to every host once, through pdsh; host -> the address at which it was reached.

    Raises LaunchError, one line a host, for those that cannot be logged in to without a password,
    or do not answer within REACH_SECONDS and a second more for each 20 hosts.
    """
    command = ["pdsh", "-S", "-b", "-f", str(len(hosts)), "-w", ",".join(hosts)]
    limit = REACH_SECONDS + len(hosts) // 20
    late = ""
    try:
        process = subprocess.Popen(
            [*command, f"echo {_MARK} $SSH_CONNECTION"],
            env=ssh_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise LaunchError("found no pdsh; install it (Debian: apt-get install pdsh)") from None
    except OSError as error:
        raise LaunchError(f"pdsh cannot be started: {error.strerror}; use fewer hosts") from None
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        out, err = error.output or b"", error.stderr or b""
        late = f"pdsh and ssh gave no answer within {limit} s"
    finally:
        _end_pdsh(process)
    reached: dict[str, str] = {}
    for line in out.decode("utf-8", "replace").splitlines():
        host, _, said = line.partition(": ")
        if said.startswith(_MARK):
            words = said.split()
            reached[host] = words[3].split("%")[0] if len(words) == 5 else ""
    missing = [host for host in hosts if host not in reached]
    if missing:
        said = err.decode("utf-8", "replace")
        raise LaunchError("\n".join(_why(host, said, late) for host in missing))
    return reached


def _end_pdsh(process: subprocess.Popen[bytes]) -> None:
    """End ``process`` and, where it still runs, its ssh processes: it ends them on SIGINT."""
    for number, seconds in ((signal.SIGINT, 2.0), (signal.SIGKILL, 10.0)):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=seconds)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _why(host: str, stderr: str, late: str) -> str:
    lines = [line[len(host) + 2 :] for line in stderr.splitlines() if line.startswith(f"{host}: ")]
    reason = lines[-1].strip() if lines else late or "no answer"
    if "Permission denied" in reason:
        remedy = f"expected a login without a password: ssh-copy-id {host}"
    elif "Host key verification failed" in reason:
        remedy = f"its key is not known here, or has changed: ssh {host} once by hand"
    else:
        remedy = f"try: ssh -o BatchMode=yes {host} true"
    return f"host {host} cannot be logged in to ({reason}); {remedy}"
