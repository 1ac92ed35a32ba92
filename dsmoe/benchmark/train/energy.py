"""The energy that the GPUs take in the measured iterations, by the driver's own counter.

NVML counts the millijoules of a whole board (GPU, memory, regulators; no host) since the driver was
loaded, from Volta on. It is read before the first measured iteration and after each one, so their
sum is one difference of two readings. The counter is brought up to date every tenth of a second
or so: what is measured should take some seconds.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class EnergyMeter:
    """Readings of this process's GPU. ``problem`` says in one line why there are none."""

    def __init__(self, device: torch.device) -> None:
        self.problem = ""
        self._device = device
        self._board: Any = None
        self._first: int | None = None
        self._last: int | None = None

    def read(self) -> None:
        """Take a reading; the first one finds the GPU, which takes some milliseconds."""
        if self.problem:
            return
        try:
            import pynvml
        except ImportError:
            self.problem = "no energy is measured: nvidia-ml-py is not installed"
            return
        try:
            if self._board is None:
                # CUDA's numbers are not NVML's where CUDA_VISIBLE_DEVICES is set
                uuid = getattr(torch.cuda.get_device_properties(self._device), "uuid", None)
                if uuid is None:
                    self.problem = (
                        f"no energy is measured: torch {torch.__version__} does not tell a GPU's "
                        "UUID; newer ones do"
                    )
                    return
                pynvml.nvmlInit()
                self._board = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self._last = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._board))
        except pynvml.NVMLError as error:
            self.problem = f"no energy is measured: {error}"
        if self._first is None:
            self._first = self._last

    def joules(self) -> float | None:
        """From the first reading to the latest, of all GPUs together; None where one has none.

        Called by all processes together.
        """
        taken = 0 if self.problem else (self._last or 0) - (self._first or 0)
        own = torch.tensor([int(taken > 0), taken], dtype=torch.int64, device=self._device)
        dist.all_reduce(own)
        counted, millijoules = own.tolist()
        return float(millijoules / 1000) if counted == dist.get_world_size() else None
