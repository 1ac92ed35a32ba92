"""The environment check of the hosts in a host file, all at once, through ssh."""

from __future__ import annotations

import json
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Sequence

from dsmoe.benchmark.preflight import probe
from dsmoe.benchmark.preflight.check import FAIL, NOTE, OK, Check
from dsmoe.common import programs
from dsmoe.common.errors import EnvironmentProblem
from dsmoe.hosts.host import Host

CONNECT_SECONDS = 10
# The login, and the start of Python there.
HELLO_SECONDS = 20.0
# Python, torch and git on a shared file system that is cold.
ANSWER_SECONDS = 120.0
CLOCK_SECONDS = 2.0
AT_ONCE = 32
FREE_GPUS, CLOCK = "free GPUs", "clock"


def check_hosts(hosts: Sequence[Host], project: Path, checkout: Path) -> list[Check]:
    """The checks of all ``hosts``, in their order; compared with what this machine says.

    Every host must have the project and the checkout at the same paths and the same Python, as
    DeepSpeed's launcher needs them.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda host: _ask(host.name, project, checkout), hosts))
        here = _facts([sys.executable, "-"], project, checkout)
    checks: list[Check] = []
    for host, answer in zip(hosts, answers):
        checks += _host_checks(host, answer, here)
    return checks


def head_facts(name: str, hostfile: Path, project: Path, checkout: Path) -> dict[str, Any]:
    """What host ``name`` says of itself. Raises EnvironmentProblem where it says nothing."""
    answer = _ask(name, project, checkout)
    facts = answer.facts or {}
    if facts.get("torch") is None:
        why = answer.error or facts.get("torch_error")
        raise EnvironmentProblem(f"{name}: {why}; {_more(hostfile)}")
    return facts


def refuse_unfit(hosts: Sequence[Host], hostfile: Path, project: Path, checkout: Path) -> list[str]:
    """What is wrong with ``hosts`` and no reason to stop, a line each: busy GPUs, clocks.

    Raises EnvironmentProblem for the first of what makes a run fail, or measure something else.
    """
    bad = [c for c in check_hosts(hosts, project, checkout) if c.state == FAIL]
    fatal = [check for check in bad if check.what not in (FREE_GPUS, CLOCK)]
    if fatal:
        first, more = fatal[0], f" ({len(fatal) - 1} more)" if len(fatal) > 1 else ""
        raise EnvironmentProblem(
            f"{first.host}: {first.what}: {first.found}{more}; {first.fix}; {_more(hostfile)}"
        )
    return [f"{check.host}: {check.what}: {check.found}; {check.fix}" for check in bad]


def _more(hostfile: Path) -> str:
    return f"all checks: dsmoe check --hostfile {shlex.quote(str(hostfile))}"


class _Answer:
    """What came back: ``facts``, or the ``error`` and whether the connection failed."""

    def __init__(self, facts: dict[str, Any] | None, error: str = "", reached: bool = True) -> None:
        self.facts = facts
        self.error = error
        self.reached = reached
        # Seconds that the host's clock is ahead, and the most that this figure may be off.
        self.ahead = 0.0
        self.doubt = 0.0


def _ask(name: str, project: Path, checkout: Path) -> _Answer:
    # The remote shell splits the command again, so it gets a quoted word; the name is a checked
    # one (dsmoe.hosts) and stands after "--" all the same.
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    return _facts([*command, "--", name, f"{shlex.quote(sys.executable)} -"], project, checkout)


def _facts(command: list[str], project: Path, checkout: Path) -> _Answer:
    source = Path(probe.__file__).read_text(encoding="utf-8")
    script = f"{source}\nask({str(project)!r}, {str(checkout)!r})\n"
    begin = time.time()
    try:
        hello = (probe.HELLO, HELLO_SECONDS)
        done = programs.ask(command, ANSWER_SECONDS, text=script, first_word=hello)
    except OSError as error:
        return _Answer(None, f"{command[0]}: {error.strerror}", reached=False)
    except programs.TimedOut as error:
        return _Answer(None, str(error), reached=False)
    end = time.time()
    said = (done.stderr.strip().splitlines() or [""])[-1]
    for line in done.stdout.splitlines():
        if line.startswith(probe.SIGN):
            facts = json.loads(line[len(probe.SIGN) :])
            answer = _Answer(facts)
            # It began after this machine asked and ended before this machine had its answer.
            least, most = facts["end"] - end, facts["begin"] - begin
            answer.ahead, answer.doubt = (least + most) / 2, abs(most - least) / 2
            return answer
    # ssh itself ends with 255; anything else comes from the other side.
    return _Answer(None, said or f"exit status {done.returncode}", done.returncode != 255)


def _host_checks(host: Host, answer: _Answer, here: _Answer) -> list[Check]:
    name = host.name
    if answer.facts is None:
        if not answer.reached:
            fix = f"make `ssh -o BatchMode=yes {name} true` work: ssh-copy-id {name}"
            return [Check("without a password", FAIL, answer.error, fix, name)]
        python = shlex.quote(sys.executable)
        fix = f"the launcher needs the same Python there: make {python} work on {name}"
        reached = Check("without a password", OK, "reached", host=name)
        return [reached, Check("Python", FAIL, answer.error, fix, name)]
    facts, own = answer.facts, here.facts or {}
    return [
        Check("without a password", OK, "reached", host=name),
        _same("Python", facts.get("python"), own.get("python"), "install the same one", name),
        _same("torch", facts.get("torch"), own.get("torch"), "install the same one", name),
        _tree(facts, own, name),
        _gpus(host, facts),
        _clock(answer, name),
    ]


def _same(what: str, there: Any, here: Any, fix: str, name: str) -> Check:
    if there == here and there is not None:
        return Check(what, OK, str(there), host=name)
    return Check(what, FAIL, f"{there or 'missing'}, here {here or 'missing'}", fix, name)


def _tree(facts: dict[str, Any], own: dict[str, Any], name: str) -> Check:
    what, trees = "patched DeepSpeed", facts.get("trees")
    short = ", ".join(f"{folder} {tree[:12]}" for folder, tree in (trees or {}).items())
    if facts.get("state") in ("applied", "applied-edited") and trees == own.get("trees"):
        edited = facts["state"] == "applied-edited"
        return Check(what, NOTE if edited else OK, short + (", with edits" * edited), host=name)
    found = facts.get("state_error") or f"{facts.get('state')}, {short or 'no tree'}"
    fix = "have the same project and checkout there, and run dsmoe apply on it"
    return Check(what, FAIL, str(found), fix, name)


def _gpus(host: Host, facts: dict[str, Any]) -> Check:
    what, gpus, free = FREE_GPUS, facts.get("gpus", 0), facts.get("free_gpus")
    if not gpus:
        return Check(what, NOTE, f"no GPU: {host.slots} CPU processes", host=host.name)
    found = f"{'?' if free is None else free} of {gpus}, {host.slots} asked for"
    if facts.get("gpu_error"):
        remedy = f"check the driver on {host.name}, or restart the host"
        return Check("GPUs", FAIL, f"{found}: {facts['gpu_error']}", remedy, host.name)
    if gpus < host.slots:
        return Check("GPUs", FAIL, found, "correct the slots in the host file", host.name)
    if free is not None and free < host.slots:
        fix = f"end what uses them: nvidia-smi on {host.name} lists it"
        return Check(what, FAIL, found, fix, host.name)
    return Check(what, NOTE if free is None else OK, found, host=host.name)


def _clock(answer: _Answer, name: str) -> Check:
    found = f"{answer.ahead:+.1f} s, give or take {answer.doubt:.1f}"
    if abs(answer.ahead) - answer.doubt > CLOCK_SECONDS:
        # Times in rows and logs would not agree; make and caches take old files for new ones.
        return Check(CLOCK, FAIL, found, "set the clock: an NTP service", name)
    return Check(CLOCK, OK, found, host=name)
