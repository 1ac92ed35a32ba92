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
import select
import socket
from typing import Any

HUB = "DSMOE_HUB"
TOKEN = "DSMOE_HUB_TOKEN"
BEAT_SECONDS = 2.0
SILENT_SECONDS = 14.0
CONNECT_SECONDS = 30.0
READ_SECONDS = 0.5
TERM_SECONDS = 5.0
# A line of output is cut here.
LINE_BYTES = 1 << 16


def encode(message: dict[str, Any]) -> bytes:
    return (json.dumps(message) + "\n").encode("ascii")


class Lines:
    """Reads messages from a connection; each call waits READ_SECONDS at most.

    The connection itself has no time limit: one that sends faster than it is read must wait.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._held = b""
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def read(self) -> list[dict[str, Any]] | None:
        """The whole messages that have come, [] if none came in time; None at the end.

        Raises OSError for a broken connection and ValueError for what is no message.
        """
        if not self._poll.poll(1000 * READ_SECONDS):
            return []
        data = self._connection.recv(1 << 16)
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
