"""Which launcher to take, and why."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Callable, Mapping

from dsmoe.benchmark.launchers import outside
from dsmoe.benchmark.launchers.deepspeed_runner import LOCAL, DeepSpeedLauncher
from dsmoe.benchmark.launchers.interface import Launcher
from dsmoe.benchmark.launchers.names import AUTO
from dsmoe.benchmark.launchers.ray_actors import RayLauncher
from dsmoe.benchmark.launchers.srun import SlurmLauncher
from dsmoe.common.errors import SourceProblem, UsageError
from dsmoe.hosts.sources import ray, slurm


def choose(
    wanted: str,
    hostfile: Path | None,
    environment: Mapping[str, str],
    written: Callable[[], Path | None] = lambda: None,
) -> tuple[Launcher, str]:
    """The launcher ``wanted``, or with ``auto`` the first that is clearly meant, and why.

    The order: a host file that the user names, ssh; processes that torchrun, MPI or Kubernetes
    have started already; a Slurm job around this command; a Ray cluster; the host file that
    ``written()`` finds, ssh; this machine. Raises DsmoeError for a launcher that cannot be used
    here: auto takes no other instead.
    """
    if hostfile is not None and wanted not in (AUTO, "ssh"):
        raise UsageError(
            f"--launcher {wanted} does not go with --hostfile, which is for ssh; leave one out"
        )
    asked = f"--launcher {wanted}"
    if hostfile is not None:
        return DeepSpeedLauncher(hostfile), f"host file {hostfile}"
    if wanted == "ssh":
        found = written()
        if found is None:
            raise UsageError("--launcher ssh: found no host file; name one with --hostfile FILE")
        return DeepSpeedLauncher(found), f"host file {found}, which dsmoe hosts wrote"
    if wanted == "local":
        return LOCAL, asked
    if wanted == "torchrun" or (wanted == AUTO and outside.started_by(environment)):
        return outside.OutsideLauncher(environment), outside.why(environment)
    if wanted == "slurm":
        return SlurmLauncher(environment), asked
    if wanted == AUTO and slurm.in_job(environment):
        job = environment.get("SLURM_JOB_ID", "")
        return SlurmLauncher(environment), f"inside job {job} of Slurm"
    if wanted == "ray":
        return RayLauncher(environment.get("RAY_ADDRESS") or "auto", environment), asked
    if environment.get("RAY_ADDRESS"):
        address = environment["RAY_ADDRESS"]
        try:
            return RayLauncher(address, environment), f"RAY_ADDRESS is {address}"
        except ray.NoCluster as error:
            raise SourceProblem(f"{error}; or give --launcher local") from error
    if ray.installed():
        with contextlib.suppress(ray.NoCluster):
            return RayLauncher("auto", environment), "a Ray cluster runs on this machine"
    found = written()
    if found is not None:
        return DeepSpeedLauncher(found), f"host file {found}, which dsmoe hosts wrote"
    return LOCAL, "no host file, no Slurm job, no Ray cluster, not started by torchrun or MPI"
