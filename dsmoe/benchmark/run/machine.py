"""The machine that a case runs on, as torch sees it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from dsmoe import __version__
from dsmoe.benchmark.run.launch import cores
from dsmoe.common.dependencies import how_to_install
from dsmoe.common.errors import EnvironmentProblem
from dsmoe.common.requires import torch_problem


@dataclass(frozen=True)
class Machine:
    """Where the case runs: one host, ``device`` cpu or cuda, and what it says of itself."""

    device: str
    instance: str
    hardware: dict[str, Any]
    versions: dict[str, str]

    @property
    def gpus(self) -> int:
        """How many there are; 0 where the processes run on the CPU."""
        return int(self.hardware.get("device_count", 0))


def machine_of(facts: dict[str, Any]) -> Machine:
    """Another host, by what host_probe.py says there."""
    versions = {"python": facts["python"], "torch": facts["torch"], "dsmoe": __version__}
    name = facts["device_name"]
    if not facts["gpus"]:
        hardware = {"device_name": name, "cores": facts["cores"]}
        return Machine("cpu", "cpu", hardware, versions)
    hardware = {
        "device_name": name,
        "device_count": facts["gpus"],
        "device_memory_bytes": facts["device_memory_bytes"],
    }
    return Machine("cuda", name.replace(" ", "-"), hardware, {**versions, "cuda": facts["cuda"]})


def this_machine(instance: str | None = None) -> Machine:
    """This host as torch sees it. Raises EnvironmentProblem where torch is missing."""
    try:
        import torch
    except ImportError as error:
        raise EnvironmentProblem(
            f"torch cannot be imported ({error}); run {how_to_install('run')}"
        ) from error
    problem = torch_problem(torch.__version__)
    if problem:
        raise EnvironmentProblem(problem)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dsmoe": __version__,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        versions["cuda"] = str(torch.version.cuda)
        hardware = {
            "device_name": properties.name,
            "device_count": torch.cuda.device_count(),
            "device_memory_bytes": properties.total_memory,
        }
        return Machine("cuda", instance or properties.name.replace(" ", "-"), hardware, versions)
    hardware = {"device_name": platform.processor() or platform.machine(), "cores": cores()}
    return Machine("cpu", "cpu", hardware, versions)
