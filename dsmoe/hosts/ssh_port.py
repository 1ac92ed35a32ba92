"""Does a host answer? A TCP connection to its ssh port, all hosts at once."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Sequence

from dsmoe.common.errors import HostGone

PROBE_SECONDS = 5.0


def refuse_silent(names: Sequence[str], port: int, seconds: float = PROBE_SECONDS) -> None:
    """Raise HostGone, naming every host of ``names`` that takes no connection at ``port``."""
    with ThreadPoolExecutor(max_workers=min(64, len(names))) as pool:
        reasons = list(pool.map(lambda name: _reason(name, port, seconds), names))
    silent = [f"{name} ({reason})" for name, reason in zip(names, reasons) if reason]
    if silent:
        raise HostGone(
            f"no connection to port {port} of {', '.join(silent)}; nothing was written; "
            "start sshd there, or remove these hosts from the list"
        )


def _reason(name: str, port: int, seconds: float) -> str:
    try:
        socket.create_connection((name, port), timeout=seconds).close()
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ""
