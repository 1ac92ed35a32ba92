"""How hosts are asked what is there: Python runs a text on each of them, through ssh for one."""

from __future__ import annotations

import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

from dsmoe.benchmark.preflight import probe
from dsmoe.common import programs
from dsmoe.common.typed import program
from dsmoe.hosts.host import Host

CONNECT_SECONDS = 10
# The login, and the start of Python there.
HELLO_SECONDS = 20.0
# Python, torch and git on a shared file system that is cold.
ANSWER_SECONDS = 120.0
AT_ONCE = 32


@dataclass(frozen=True)
class Reply:
    """What came back from a host between ``begin`` and ``end``, times of this machine's clock.

    ``error`` is for a host that sent no answer; ``reached``: whether its program was started.
    """

    begin: float
    end: float
    lines: Sequence[str] = ()
    error: str = ""
    reached: bool = True


@dataclass(frozen=True)
class Way:
    """How hosts are reached: ``ask(hosts, script)`` gives their replies in the same order.

    ``check`` is what the check of that is called, ``fix(host)`` says what to do where it fails,
    and ``more`` is the command that prints all checks.
    """

    ask: Callable[[Sequence[Host], str], list[Reply]]
    check: str
    fix: Callable[[str], str]
    more: str
    needs_ssh: bool = False


def script_for(project: Path, checkout: Path) -> str:
    """The text of probe.py with its call."""
    source = Path(probe.__file__).read_text(encoding="utf-8")
    return f"{source}\nask({str(project)!r}, {str(checkout)!r})\n"


def by_ssh(hosts: Sequence[Host], script: str) -> list[Reply]:
    """The replies through ssh, all hosts at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda host: _one_by_ssh(host.name, script), hosts))


def ssh_way(hostfile: Path) -> Way:
    """The hosts of a host file through ssh."""
    return Way(
        by_ssh,
        "without a password",
        lambda name: f"make `ssh -o BatchMode=yes {name} true` work: ssh-copy-id {name}",
        f"{program('check')} --hostfile {shlex.quote(str(hostfile))}",
        needs_ssh=True,
    )


def _one_by_ssh(name: str, script: str) -> Reply:
    # The remote shell splits the command again, so it gets a quoted word; the name is a checked
    # one (dsmoe.hosts) and stands after "--" all the same.
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    return of_program([*command, "--", name, f"{shlex.quote(sys.executable)} -"], script)


def of_program(command: Sequence[str], script: str) -> Reply:
    """The reply of a program that gets ``script`` as its input."""
    begin = time.time()
    try:
        hello = (probe.HELLO, HELLO_SECONDS)
        done = programs.ask(command, ANSWER_SECONDS, text=script, first_word=hello)
    except OSError as error:
        return Reply(begin, time.time(), (), f"{command[0]}: {error.strerror}", reached=False)
    except programs.TimedOut as error:
        return Reply(begin, time.time(), (), str(error), reached=False)
    said = (done.stderr.strip().splitlines() or [""])[-1]
    # ssh itself ends with 255; anything else comes from the other side.
    why = said or f"exit status {done.returncode}"
    return Reply(begin, time.time(), done.stdout.splitlines(), why, done.returncode != 255)
