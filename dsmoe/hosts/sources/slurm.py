"""The hosts and GPUs of the Slurm job that this process runs in, from its environment.

Variables as in the sbatch and srun manuals (Slurm 22.05), section "OUTPUT ENVIRONMENT VARIABLES".
"""

from __future__ import annotations

import re
import shutil
from typing import Mapping

from dsmoe.common import programs
from dsmoe.common.errors import HostProblem, SourceProblem
from dsmoe.hosts.brackets import expand_counts, expand_names
from dsmoe.hosts.host import MAX_SLOTS, Candidate, check_name, shown
from dsmoe.hosts.sources.found import Found

SCONTROL_SECONDS = 10.0
_TYPED = re.compile(r"(?:[A-Za-z0-9_./-]+[:=])*([0-9]{1,6})")


def in_job(env: Mapping[str, str]) -> bool:
    """Whether the environment is that of a Slurm job with a node list."""
    return bool(_nodelist(env)[1])


def find(env: Mapping[str, str], reason: str) -> Found:
    """The hosts of the job, in Slurm's order, with the GPUs of each where Slurm says.

    Raises SourceProblem outside of a job, HostProblem if Slurm's variables contradict each other.
    """
    variable, nodelist = _nodelist(env)
    if not nodelist:
        raise SourceProblem(
            "found no SLURM_JOB_NODELIST, expected to run inside a Slurm job; "
            "use salloc or sbatch, or --from list"
        )
    if env.get("SLURM_HET_SIZE", "1") not in ("", "1"):
        raise SourceProblem(
            "found a heterogeneous Slurm job (SLURM_HET_SIZE="
            f"{shown(env['SLURM_HET_SIZE'])}), expected one component; give the hosts by --hosts"
        )
    names, warnings = _names(nodelist, variable)
    stated = env.get("SLURM_JOB_NUM_NODES") or env.get("SLURM_NNODES")
    if stated and stated != str(len(names)):
        raise HostProblem(
            f"{variable}: found {len(names)} hosts in {shown(nodelist)}, "
            f"expected {shown(stated)} as in SLURM_JOB_NUM_NODES"
        )
    counts, origin = gpus(env, len(names))
    if origin in ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS") and len(names) > 1:
        warnings.append(f"{origin} is about this host only; the others are taken to have the same")
    return Found(
        source="slurm",
        reason=f"{reason}; GPUs from {origin}" if origin else reason,
        candidates=[Candidate(n, c, variable) for n, c in zip(names, counts)],
        device="gpu" if origin else "unstated",
        warnings=warnings,
        no_slots_hint="the job's environment does not say how many GPUs it has; give --slots N",
    )


def gpus(env: Mapping[str, str], hosts: int) -> tuple[list[int | None], str]:
    """GPUs of each of ``hosts`` hosts and the variable that says so ([None, ...] and "" if none).

    Statements about the whole job come before those about this host or this step; those of the
    job that differ raise HostProblem, for either may be the mistake.
    """
    stated: dict[str, int] = {}
    for name in ("SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE"):
        if env.get(name):
            stated[name] = _typed(env[name], name)
    if env.get("SLURM_JOB_GPUS"):
        stated["SLURM_JOB_GPUS"] = _identifiers(env["SLURM_JOB_GPUS"], "SLURM_JOB_GPUS")
    if not stated and env.get("SLURM_GPUS_PER_TASK") and env.get("SLURM_TASKS_PER_NODE"):
        return _per_task(env, hosts), "SLURM_GPUS_PER_TASK and SLURM_TASKS_PER_NODE"
    if not stated and env.get("SLURM_STEP_GPUS"):
        stated["SLURM_STEP_GPUS"] = _identifiers(env["SLURM_STEP_GPUS"], "SLURM_STEP_GPUS")
    if not stated:
        return [None] * hosts, ""
    if len(set(stated.values())) > 1:
        said = ", ".join(f"{name} says {count}" for name, count in stated.items())
        raise HostProblem(f"found different GPU counts ({said}), expected one; give --slots N")
    origin, count = next(iter(stated.items()))
    return [_in_range(count, origin)] * hosts, origin


def _nodelist(env: Mapping[str, str]) -> tuple[str, str]:
    for name in ("SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if env.get(name, "").strip():
            return name, env[name].strip()
    return "SLURM_JOB_NODELIST", ""


def _names(nodelist: str, variable: str) -> tuple[list[str], list[str]]:
    own: list[str] = []
    problem: HostProblem | None = None
    try:
        own = expand_names(nodelist)
    except HostProblem as error:
        problem = HostProblem(f"{variable}: {error}")
    asked, warning = _ask_scontrol(nodelist)
    if problem and not asked:
        raise problem
    if own and asked and sorted(own) != sorted(asked):
        raise HostProblem(
            f"{variable}: scontrol expands {shown(nodelist)} to other hosts than Slurm's "
            "documented syntax does; give the hosts by --hosts"
        )
    names = [check_name(name, variable) for name in asked or own]
    if len({name.lower() for name in names}) < len(names):
        raise HostProblem(f"{variable}: found a host twice in {shown(nodelist)}")
    return names, [warning] if warning else []


def _ask_scontrol(nodelist: str) -> tuple[list[str], str]:
    """scontrol's expansion, or [] and, where scontrol is there but fails, a warning."""
    program = shutil.which("scontrol")
    if not program or nodelist.startswith("-"):
        return [], ""
    instead = "; the node list is expanded by Slurm's documented syntax instead"
    failed = f"scontrol show hostnames failed{instead}"
    try:
        done = programs.ask([program, "show", "hostnames", nodelist], SCONTROL_SECONDS)
    except OSError:  # a node list of over 128 KiB, for one, is too long for an argument
        return [], failed
    except programs.TimedOut as error:
        return [], f"{error}{instead}"
    output = done.stdout
    # scontrol exits 0 after an error, with "Invalid hostlist: ..." among its output.
    if done.returncode != 0 or done.stderr.strip() or "Invalid hostlist" in output:
        return [], failed
    return output.split(), "" if output.split() else failed


def _typed(text: str, variable: str) -> int:
    """GPUs in forms like ``4``, ``a100:4`` and ``a100:2,v100:2`` (their sum)."""
    total = 0
    for item in text.split(","):
        match = _TYPED.fullmatch(item.strip())
        if not match:
            raise HostProblem(f"{variable}: found {shown(text)}, expected a form like 4 or a100:4")
        total += int(match.group(1))
    return total


def _identifiers(text: str, variable: str) -> int:
    """How many GPUs a list of their numbers names, as in ``0,1,2,3`` or ``0-3``."""
    try:
        return len(set(expand_names(f"[{text.strip()}]")))
    except HostProblem:
        raise HostProblem(
            f"{variable}: found {shown(text)}, expected a form like 0,1 or 0-3"
        ) from None


def _per_task(env: Mapping[str, str], hosts: int) -> list[int | None]:
    each = _typed(env["SLURM_GPUS_PER_TASK"], "SLURM_GPUS_PER_TASK")
    try:
        tasks = expand_counts(env["SLURM_TASKS_PER_NODE"])
    except HostProblem as error:
        raise HostProblem(f"SLURM_TASKS_PER_NODE: {error}") from None
    if len(tasks) != hosts:
        raise HostProblem(
            f"SLURM_TASKS_PER_NODE: found counts for {len(tasks)} hosts, expected {hosts}"
        )
    return [_in_range(each * count, "SLURM_GPUS_PER_TASK") for count in tasks]


def _in_range(count: int, variable: str) -> int:
    if not 1 <= count <= MAX_SLOTS:
        raise HostProblem(f"{variable}: found {count} GPUs a host, expected 1 to {MAX_SLOTS}")
    return count
