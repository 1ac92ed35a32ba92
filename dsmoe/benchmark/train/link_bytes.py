"""The bytes that each host sends and receives in an iteration, by its interface's own counters.

The counters are read between iterations, when every process has ended the one (the sum of the
losses waits for that) and none has begun the next (a barrier). So the bytes of one iteration are
a difference of two readings: headers and acknowledgements count, and so do the sum of the losses
and the barrier, under 10 kB; the start, the evaluation and other iterations do not.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import torch
import torch.distributed as dist

from dsmoe.benchmark.run.layout import INTERFACE, interface_to_master

LOOPBACK = "lo"


def interface() -> str | None:
    """The interface towards the other hosts; None: this host has the loopback alone.

    Where all processes are on one host and meet at the loopback, it is the first other one.
    """
    found = os.environ.get(INTERFACE) or interface_to_master(os.environ)
    if found and found != LOOPBACK:
        return found
    return next((name for name in psutil.net_io_counters(pernic=True) if name != LOOPBACK), None)


class LinkBytes:
    """Readings of this process's host; called by all processes together."""

    def __init__(self, device: torch.device) -> None:
        self.interface = interface()
        self._device = device
        self._readings: list[tuple[int, int]] = []

    def read(self) -> None:
        """Take a reading, while no process sends anything of an iteration."""
        if not self._readings:
            dist.barrier()  # what went before has arrived
        # of this process's own network namespace
        counters = psutil.net_io_counters(pernic=True, nowrap=False)
        found = counters.get(self.interface or "")
        self._readings.append((found.bytes_sent, found.bytes_recv) if found else (0, 0))
        dist.barrier()

    def by_host(self, warmup: int) -> dict[str, Any]:
        """``sent`` and ``received``: for each host, in their order, a list by iteration.

        ``warmup`` iterations at the beginning are left out. A host is where a local rank is 0.
        """
        readings = torch.tensor(self._readings, dtype=torch.int64)
        each = (readings[1:] - readings[:-1])[warmup:]
        local_rank = torch.full((1, 2), int(os.environ["LOCAL_RANK"]), dtype=torch.int64)
        own = torch.cat([local_rank, each]).to(self._device)
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, own)
        hosts = [found[1:].T.tolist() for found in everyone if int(found[0, 0]) == 0]
        return {
            "interface": self.interface,
            "sent": [sent for sent, _ in hosts],
            "received": [received for _, received in hosts],
        }
