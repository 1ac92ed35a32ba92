"""The machine that a case runs on, as torch sees it."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from dsmoe import __version__
from dsmoe.benchmark.preflight.probe import torch_facts
from dsmoe.common.errors import EnvironmentProblem
from dsmoe.common.packages.dependencies import how_to_install
from dsmoe.common.packages.requires import torch_problem


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

    @property
    def gpu(self) -> str:
        """The name of its GPUs, or of its processor."""
        return str(self.hardware.get("device_name", ""))


def machine_of(facts: dict[str, Any]) -> Machine:
    """A host, by what probe.py says there (``python`` and its torch_facts)."""
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


def this_machine() -> Machine:
    """This host as torch sees it. Raises EnvironmentProblem where torch is missing or too old."""
    facts = torch_facts()
    if facts["torch"] is None:
        raise EnvironmentProblem(
            f"torch cannot be imported ({facts['torch_error']}); run {how_to_install('run')}"
        )
    problem = torch_problem(facts["torch"])
    if problem:
        raise EnvironmentProblem(problem)
    return machine_of({**facts, "python": platform.python_version()})
