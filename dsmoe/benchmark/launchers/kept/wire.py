"""What the command and the keepers of its processes say to each other: JSON, one object a line.

A keeper begins with ``{"token", "rank", "local_rank", "world", "host", "address", "port", "pid"}``
(``port`` is a free one of its host). The command says ``{"do": "start", ...}``, ``"end"`` and
``"bye"``; the keeper ``{"out": LINE}``, ``{"ended": CODE, "pid": N}`` and ``{"asked": SIGNAL}``.
Both send ``{}`` every BEAT_SECONDS, and count the other as lost after SILENT_SECONDS without
one: a connection whose cable was pulled ends by no other sign.

Imports the standard library alone, for keepers start on every host.
"""

from __future__ import annotations

import json
import socket
from typing import Any

HUB = "DSMOE_HUB"
TOKEN = "DSMOE_HUB_TOKEN"
BEAT_SECONDS = 2.0
SILENT_SECONDS = 14.0
CONNECT_SECONDS = 30.0
TERM_SECONDS = 5.0
# A line of output is cut here.
LINE_BYTES = 1 << 16


def encode(message: dict[str, Any]) -> bytes:
    return (json.dumps(message) + "\n").encode("ascii")


class Lines:
    """Reads messages from a connection with a timeout; each call waits that long at most."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._held = b""

    def read(self) -> list[dict[str, Any]] | None:
        """The whole messages that have come, [] if none came in time; None at the end.

        Raises OSError for a broken connection and ValueError for what is no message.
        """
        try:
            data = self._connection.recv(1 << 16)
        except socket.timeout:  # TimeoutError from Python 3.10 on
            return []
        if not data:
            return None
        whole, newline, rest = (self._held + data).rpartition(b"\n")
        self._held = rest
        if len(rest) > 16 * LINE_BYTES:
            raise ValueError("a message without an end")
        found = [json.loads(line) for line in whole.split(b"\n")] if newline else []
        if not all(isinstance(message, dict) for message in found):
            raise ValueError("a message that is no object")
        return found
