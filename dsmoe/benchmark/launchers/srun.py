"""One ``srun`` step inside the job around this command: no ssh, and no host file."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator, Mapping, Sequence

from dsmoe.benchmark.launchers.job import Job
from dsmoe.benchmark.launchers.kept.asking_keepers import ask_kept
from dsmoe.benchmark.launchers.kept.by_keepers import KeptRun
from dsmoe.benchmark.launchers.kept.hub import Hub
from dsmoe.benchmark.launchers.kept.keeper import PROCESS
from dsmoe.benchmark.preflight.asking import Reply, Way
from dsmoe.benchmark.run.layout import Layout, fill
from dsmoe.benchmark.run.processes import Output, session
from dsmoe.benchmark.run.reasons import reason
from dsmoe.common.errors import EnvironmentProblem, SourceProblem, UsageError
from dsmoe.common.typed import program
from dsmoe.hosts.brackets import expand_counts
from dsmoe.hosts.host import Host
from dsmoe.hosts.identity import is_this_machine
from dsmoe.hosts.sources import slurm as source

SRUN_END_SECONDS = 5.0
# Options of the job that srun would take over from its environment, and that are stated here.
_OVERRULED = ("SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_GPU_BIND", "SLURM_GPUS")
_CANCELLED = re.compile(r"((?:STEP|JOB) \S+ ON \S+ CANCELLED AT .*)")
_NODE_FAILED = re.compile(r"srun: error: (Node failure on \S+)")
_CAUSES = {
    "DUE TO TIME LIMIT": "its time limit is reached: ask for more with --time",
    "DUE TO NODE FAILURE": "a node failed: sinfo --list-reasons says more",
}


class SlurmLauncher:
    """``slurm``: the nodes of the job in ``environment``."""

    name = "slurm"
    ends_with_processes = False

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
        if tasks != "1":
            raise UsageError(
                f"found this command {tasks:.20} times in a step of Slurm; expected it once in a "
                "job: leave srun out, the command calls it"
            )
        if shutil.which("srun") is None:
            raise EnvironmentProblem("srun: no such program; expected Slurm's in PATH")
        self._hosts, self._gpus = hosts_of_job(environment)
        self._job_id = environment.get("SLURM_JOB_ID", "")

    def hosts(self) -> list[Host]:
        return list(self._hosts)

    def lay_out(self, processes: int) -> Layout:
        each = self._hosts[0].slots
        nodes = max(1, -(-processes // each))
        what = f"--ntasks-per-node={each} (for GPUs --gpus-per-node=N)"
        if self._gpus:
            what = f"--gpus-per-node={each}"
        remedy = f"ask Slurm for them: salloc --nodes={nodes} {what}, or name another number"
        names, devices = fill(self._hosts, processes, f"job {self._job_id}", remedy)
        return Layout(names, devices)

    def check(self, job: Job) -> None:
        """srun says by itself what is wrong."""

    @contextlib.contextmanager
    def start(self, job: Job, log: Path) -> Iterator[KeptRun]:
        hub = Hub(job.layout.hosts * job.layout.devices)
        run = KeptRun(hub, job, log)
        try:
            words = self.srun(job.layout.names, job.layout.devices)
            with session(words, self._variables(hub), run.writing) as srun:
                run.launcher_code = srun.poll
                try:
                    yield run
                finally:
                    run.end()
                    hub.close()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        srun.wait(SRUN_END_SECONDS)
        finally:
            run.close()

    def reason(self, code: int, output: Output, log: Path) -> str:
        cancelled = ended_by_slurm(output.tail)
        if cancelled:
            return f"{cancelled} (see {log})"
        return reason(code, output.marks, output.tail, log)

    def srun(self, names: Sequence[str], devices: int) -> list[str]:
        """The command that starts a keeper for each process."""
        return [
            "srun",
            f"--nodes={len(names)}",
            f"--nodelist={','.join(names)}",
            f"--ntasks={len(names) * devices}",
            f"--ntasks-per-node={devices}",
            "--distribution=block",
            *([f"--gpus-per-node={devices}", "--gpu-bind=none"] if self._gpus else []),
            # All CPUs of the job for every process, also if this command is itself in a step.
            "--overlap",
            "--overcommit",
            "--cpu-bind=none",
            "--mpi=none",
            "--input=none",
            "--export=ALL",
            "--kill-on-bad-exit=0",
            "--job-name=dsmoe",
            sys.executable,
            str(PROCESS),
            "slurm",
        ]

    def line(self, job: Job) -> str:
        return shlex.join(self.srun(job.layout.names, job.layout.devices))

    def way(self) -> Way:
        return Way(
            self._ask,
            "reached by srun",
            lambda name: f"make `srun --overlap --nodelist={name} true` work in this job",
            f"{program('check')} --launcher slurm",
        )

    def distant_head(self, layout: Layout) -> str | None:
        return None if is_this_machine(layout.names[0]) else layout.names[0]

    def close(self, code: int) -> None:
        """Each step is over by now."""

    def _ask(self, hosts: Sequence[Host], script: str) -> list[Reply]:
        hub = Hub(len(hosts))
        reading, writing = os.pipe()
        said = Output(os.fdopen(reading, "rb"), Path(os.devnull))
        try:
            with session(self.srun([h.name for h in hosts], 1), self._variables(hub), writing) as s:
                ranks = list(range(len(hosts)))
                try:
                    return ask_kept(hub, ranks, script, s.poll, lambda: "; ".join(said.tail[-2:]))
                finally:
                    hub.close()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        s.wait(SRUN_END_SECONDS)
        finally:
            os.close(writing)

    def _variables(self, hub: Hub) -> dict[str, str]:
        own = {k: v for k, v in self._environment.items() if k not in _OVERRULED}
        # The address where srun is, which is on this machine, is Slurm's to say.
        return {**own, **hub.variables("")}


def hosts_of_job(environment: Mapping[str, str]) -> tuple[list[Host], bool]:
    """The nodes of the job with the processes that each takes, and whether these are its GPUs.

    Where the job has no GPU, they are its tasks. Raises SourceProblem outside of a job.
    """
    if not source.in_job(environment):
        raise SourceProblem(
            "--launcher slurm: found no job of Slurm around this command; expected one: "
            "salloc --nodes=2 --gpus-per-node=8, or have a batch script with --print-sbatch"
        )
    candidates = source.find(environment, "").candidates
    if all(candidate.slots for candidate in candidates):
        return [Host(c.name, int(c.slots or 0)) for c in candidates], True
    tasks = [1] * len(candidates)
    if environment.get("SLURM_TASKS_PER_NODE"):
        tasks = expand_counts(environment["SLURM_TASKS_PER_NODE"])
    if len(tasks) != len(candidates):
        raise UsageError(
            f"SLURM_TASKS_PER_NODE: found counts for {len(tasks)} nodes, expected "
            f"{len(candidates)}: start the command right inside salloc or sbatch"
        )
    return [Host(c.name, n) for c, n in zip(candidates, tasks)], False


def ended_by_slurm(lines: Sequence[str]) -> str | None:
    """What Slurm says of a step that it ended itself, or None."""
    for line in lines:
        node, step = _NODE_FAILED.search(line), _CANCELLED.search(line)
        if node:
            return f"Slurm: {node[1]}; {_CAUSES['DUE TO NODE FAILURE']}"
        if step:
            said = step[1].strip(" *")
            cause = next((why for words, why in _CAUSES.items() if words in said), "")
            return f"Slurm ended it: {said}" + (f"; {cause}" if cause else " (scancel)")
    return None
