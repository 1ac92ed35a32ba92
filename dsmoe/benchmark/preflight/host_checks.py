"""The environment check of a run's hosts, all at once, through ssh or the launcher."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Any, Sequence

from dsmoe.benchmark.preflight import probe
from dsmoe.benchmark.preflight.asking import Reply, Way, script_for
from dsmoe.benchmark.preflight.check import FAIL, NOTE, OK, Check
from dsmoe.common.errors import DsmoeError, EnvironmentProblem
from dsmoe.hosts.host import Host
from dsmoe.patchset.checkout.state import describe

CLOCK_SECONDS = 2.0
FREE_GPUS, CLOCK = "free GPUs", "clock"


def check_hosts(hosts: Sequence[Host], way: Way, project: Path, checkout: Path) -> list[Check]:
    """The checks of all ``hosts``, in their order; compared with what this machine says.

    Every host must have the project and the checkout at the same paths and the same Python, as
    the launchers need them.
    """
    script = script_for(project, checkout)
    answers = [_Answer(reply) for reply in way.ask(hosts, script)]
    here = _here(checkout)
    checks: list[Check] = []
    for host, answer in zip(hosts, answers):
        checks += _host_checks(host, answer, here, way)
    return checks


def _here(checkout: Path) -> dict[str, Any]:
    """What this machine says, which hosts are compared with.

    In this process: where torch has to be imported for it, that has happened already.
    """
    facts: dict[str, Any] = {"python": platform.python_version()}
    facts["torch"] = probe.torch_facts()["torch"]
    try:
        facts["trees"] = dict(describe(checkout).result)
    except DsmoeError:  # which this machine's own check of the checkout tells
        facts["trees"] = None
    return facts


def head_facts(host: Host, way: Way, project: Path, checkout: Path) -> dict[str, Any]:
    """What ``host`` says of itself. Raises EnvironmentProblem where it says nothing."""
    [reply] = way.ask([host], script_for(project, checkout))
    answer = _Answer(reply)
    facts = answer.facts or {}
    if facts.get("torch") is None:
        why = answer.error or facts.get("torch_error")
        raise EnvironmentProblem(f"{host.name}: {why}; {_more(way)}")
    return facts


def refuse_unfit(hosts: Sequence[Host], way: Way, project: Path, checkout: Path) -> list[str]:
    """What is wrong with ``hosts`` and no reason to stop, a line each: busy GPUs, clocks.

    Raises EnvironmentProblem for the first of what makes a run fail, or measure something else.
    """
    bad = [c for c in check_hosts(hosts, way, project, checkout) if c.state == FAIL]
    fatal = [check for check in bad if check.what not in (FREE_GPUS, CLOCK)]
    if fatal:
        first, more = fatal[0], f" ({len(fatal) - 1} more)" if len(fatal) > 1 else ""
        raise EnvironmentProblem(
            f"{first.host}: {first.what}: {first.found}{more}; {first.fix}; {_more(way)}"
        )
    return [f"{check.host}: {check.what}: {check.found}; {check.fix}" for check in bad]


def _more(way: Way) -> str:
    return f"all checks: {way.more}"


class _Answer:
    """What a reply says: ``facts``, or the ``error`` and whether the host was reached."""

    def __init__(self, reply: Reply) -> None:
        self.facts: dict[str, Any] | None = None
        self.error = reply.error
        self.reached = reply.reached
        # Seconds that the host's clock is ahead, and the most that this figure may be off.
        self.ahead = 0.0
        self.doubt = 0.0
        for line in reply.lines:
            if line.startswith(probe.SIGN):
                self.facts = json.loads(line[len(probe.SIGN) :])
                assert self.facts is not None
                # It began after this machine asked and ended before it had its answer.
                least, most = self.facts["end"] - reply.end, self.facts["begin"] - reply.begin
                self.ahead, self.doubt = (least + most) / 2, abs(most - least) / 2


def _host_checks(host: Host, answer: _Answer, own: dict[str, Any], way: Way) -> list[Check]:
    name = host.name
    if answer.facts is None:
        if not answer.reached:
            return [Check(way.check, FAIL, answer.error, way.fix(name), name)]
        python = shlex.quote(sys.executable)
        fix = f"the launcher needs the same Python there: make {python} work on {name}"
        reached = Check(way.check, OK, "reached", host=name)
        return [reached, Check("Python", FAIL, answer.error, fix, name)]
    facts = answer.facts
    return [
        Check(way.check, OK, "reached", host=name),
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
