"""What the processes of tests/engine/test_energy.py do."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import torch
import torch.distributed as dist

from dsmoe.benchmark.train.energy import EnergyMeter
from support.scenarios import DEVICE


class NvmlError(Exception):
    pass


def counter_of(readings: list[int] | None) -> ModuleType:
    """A stand-in of nvidia-ml-py: a board whose counter shows ``readings``, or which has none."""
    left = list(readings or [])

    def total(board: str) -> int:
        assert board == "GPU-0a-1b"
        if readings is None:
            raise NvmlError("Not Supported")
        return left.pop(0)

    made = ModuleType("pynvml")
    made.NVMLError = NvmlError
    made.nvmlInit = lambda: None
    made.nvmlDeviceGetHandleByUUID = lambda name: name
    made.nvmlDeviceGetTotalEnergyConsumption = total
    return made


def energy_of_all(
    by_rank: list[list[int] | None], uuid: str | None = "0a-1b"
) -> tuple[float | None, str]:
    """The joules that all processes find, and this one's problem; two readings are taken at least.

    ``by_rank``: what each process's counter shows, in millijoules; None where there is none.
    ``uuid``: what torch says of every GPU.
    """
    readings = by_rank[dist.get_rank()]
    before = sys.modules.get("pynvml"), torch.cuda.get_device_properties
    sys.modules["pynvml"] = counter_of(readings)
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid=uuid)
    try:
        meter = EnergyMeter(torch.device(DEVICE))
        for _ in readings or range(2):
            meter.read()
        return meter.joules(), meter.problem
    finally:
        torch.cuda.get_device_properties = before[1]
        sys.modules.pop("pynvml")
        if before[0]:
            sys.modules["pynvml"] = before[0]
