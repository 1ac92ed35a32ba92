"""Which process of a run this one is, by the variables of what started it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Mapping

#: Launcher -> names of the variables of rank, local rank and number of processes.
VARIABLES = {
    "slurm": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    "MPICH": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
}


@dataclass(frozen=True)
class Place:
    """Process ``rank`` of ``world``, the ``local_rank``-th on its host."""

    rank: int
    local_rank: int
    world: int


def place_by(launcher: str, environment: Mapping[str, str]) -> Place | None:
    """This process's place by the variables of ``launcher``; None where one is missing or wrong.

    A local rank that is missing is 0: Kubernetes' PyTorchJob has a process a pod.
    """
    rank, local_rank, world = VARIABLES[launcher]
    try:
        place = Place(
            int(environment[rank]), int(environment.get(local_rank, "0")), int(environment[world])
        )
    except (KeyError, ValueError):
        return None
    return place if 0 <= place.local_rank <= place.rank < place.world else None


def host_name(environment: Mapping[str, str] = os.environ) -> str:
    """What this host is called: by Slurm, else by itself."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()
