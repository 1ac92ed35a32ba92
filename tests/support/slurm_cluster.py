"""A real Slurm (slurmctld, slurmd, munge) on hosts of namespaces, with a state of its own."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any, Sequence

from dsmoe.hosts.spaces.guardian import tool
from dsmoe.hosts.spaces.namespace_cluster import HostCluster
from support.cluster_runs import environment

TOOLS = ("slurmctld", "slurmd", "munged", "srun", "sbatch", "scontrol")
READY_SECONDS = 60
# KillWait, SlurmdTimeout and the like keep Slurm's defaults: a site has these.
CONFIGURATION = """\
ClusterName=dsmoe
SlurmctldHost={head}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName={nodes} CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs of Slurm and munge that are not installed."""
    return [name for name in TOOLS if tool(name) is None]


class Slurm:
    """Slurm on the first ``count`` hosts of ``cluster``; the first has slurmctld and commands.

    No cgroup is used, and the GPUs are only counted (their devices are /dev/null and /dev/zero).
    """

    def __init__(self, cluster: HostCluster, folder: Path, count: int = 2) -> None:
        self.cluster, self.folder, self.nodes = cluster, folder, cluster.names[:count]
        for name in ("munge", "state", *(f"spool.{node}" for node in self.nodes)):
            (folder / name).mkdir(mode=0o755)
        text = CONFIGURATION.format(folder=folder, head=self.nodes[0], nodes=",".join(self.nodes))
        (folder / "slurm.conf").write_text(text)
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        gpus = "".join(f"Name=gpu File=/dev/{name}\n" for name in ("null", "zero"))
        (folder / "gres.conf").write_text(gpus)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._daemons: list[subprocess.Popen[str]] = []
        munge = {f"--{n}-file": str(folder / "munge" / n) for n in ("key", "pid", "log", "seed")}
        words = [word for pair in munge.items() for word in pair]
        socket = ["--socket", str(folder / "munge" / "socket"), "--force"]
        self._start(self.nodes[0], ["munged", "--foreground", *words, *socket])
        self._wait(lambda: (folder / "munge" / "socket").exists())
        self._start(self.nodes[0], ["slurmctld", "-D"])
        for node in self.nodes:
            self._start(node, ["slurmd", "-D", "-N", node])
        self._wait(self._idle)

    @property
    def own(self) -> dict[str, str]:
        """The variable by which commands find this Slurm."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def _start(self, host: str, words: Sequence[str]) -> None:
        command = [str(tool(words[0])), *words[1:]]
        log = (self.folder / f"{words[0]}.{host}.out").open("wb")
        started = self.cluster.start(
            host,
            command,
            env={**environment(), **self.own},
            stdout=log,
            stderr=log,
            cwd=self.folder,
        )
        self._daemons.append(started)

    def _wait(self, ready: Any) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            logs = "\n".join(p.read_text()[-1500:] for p in sorted(self.folder.glob("*.out")))
            said = self.run(["sinfo", "-N", "-l"]) if time.monotonic() > deadline else ""
            assert time.monotonic() < deadline, f"Slurm does not start:\n{logs}\n{said}"
            time.sleep(0.2)

    def run(self, command: Sequence[str], **more: Any) -> str:
        """What a command on the head prints."""
        variables = {**environment(), **self.own}
        return self.cluster.run(self.nodes[0], command, env=variables, **more).stdout

    def settle(self) -> None:
        """Wait until no job is left, and every node is there again."""
        self._wait(lambda: not self.run(["squeue", "-h"]).strip())
        self._wait(self._idle)

    def _idle(self) -> bool:
        return self.run(["sinfo", "-h", "-t", "idle", "-o", "%D"]) == f"{len(self.nodes)}\n"

    def close(self) -> None:
        """End what runs, and the daemons."""
        self.run(["scancel", "--user", "root"])
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
