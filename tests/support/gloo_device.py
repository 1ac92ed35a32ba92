"""One thread for the messages of all gloo groups of a process, for processes that see many engines.

Each group has a device of its own, with a thread that wakes a hundred times a second. Hooks in
autograd's graph hold ZeRO's optimizers and with them their groups, so that no collector frees
these: after some hundred tests their threads took as much of two cores as the tests did.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch.distributed import distributed_c10d as c10d


def share_gloo_device() -> None:
    """Groups that are made from now on have one device, on the loopback interface."""
    own = c10d.ProcessGroupGloo
    device = own.create_device(interface="lo")

    class Kind(type(own)):  # type: ignore[misc]
        def __instancecheck__(cls, value: Any) -> bool:  # also where C++ has made it
            return isinstance(value, own)

    class OnOneDevice(own, metaclass=Kind):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            options = own._Options()
            options._devices, options._timeout = [device], timeout
            super().__init__(store, rank, size, options)

    c10d.ProcessGroupGloo = OnOneDevice
