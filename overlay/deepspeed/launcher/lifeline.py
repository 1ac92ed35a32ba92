"""Lets processes detect that the runner which started them was killed or is unreachable.

The runner listens on a port (:class:`Lifeline`); ``deepspeed.launcher.launch`` on every host
connects to it, at the address that its ssh connection came from (:func:`watch`). Only a greeting is
sent. The kernel reports at once that the runner has ended, and by keep-alive within KEEPALIVE
seconds that the other host is unreachable. A stopped runner (Ctrl-Z) still answers.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket
import sys
import threading
import time
from typing import Callable

from deepspeed.utils import logger

GREETING = b"deepspeed-lifeline\n"
IDLE, INTERVAL, PROBES = 4, 4, 3
KEEPALIVE = IDLE + INTERVAL * PROBES
CONNECT_SECONDS = 10
PARENT_SECONDS = 1.0
LIMIT = 4096

_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
_PR_SET_PDEATHSIG = 1


class Lifeline:
    """A port that stays open, with all connections to it, until this process ends."""

    def __init__(self) -> None:
        self._listener = _listener()
        self.port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                found = key.fileobj
                if found is self._listener:
                    self._accept()
                elif not _still_open(found):
                    self._selector.unregister(found)
                    found.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
            if len(self._selector.get_map()) > LIMIT:
                connection.close()
                return
            keep_alive(connection)
            connection.setblocking(False)
            connection.send(GREETING)
        except OSError:
            return
        self._selector.register(connection, selectors.EVENT_READ)


def _listener() -> socket.socket:
    # One socket for both families where the machine has IPv6, else IPv4 alone.
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            found = socket.socket(family, socket.SOCK_STREAM)
            if family == socket.AF_INET6:
                found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            found.bind((address, 0))
            found.listen(128)
            return found
        except OSError:
            continue
    raise OSError("cannot listen on any port")


def _still_open(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(64))
    except BlockingIOError:
        return True
    except OSError:
        return False


def keep_alive(connection: socket.socket) -> None:
    """Enable keep-alive: an unreachable peer becomes an error within KEEPALIVE seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", IDLE),
        ("TCP_KEEPINTVL", INTERVAL),
        ("TCP_KEEPCNT", PROBES),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def watch(port: int | None) -> None:
    """End this process by SIGTERM when its parent, or the runner at ``port``, has ended.

    ``port`` None: watch nothing (launched by hand). 0: watch the parent alone. Returns at once.
    """
    if port is None:
        return
    parent = os.getppid()
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    came_from = os.environ.get("SSH_CONNECTION", "").split()
    if port and came_from:
        threading.Thread(target=_watch_runner, args=(came_from[0], port), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    _end("the process that started this one has ended")


def _watch_runner(address: str, port: int) -> None:
    connection = _connect(address, port)
    if connection is None:
        logger.warning(
            f"the launcher's port {address}:{port} cannot be reached from here: if this host is "
            "cut off from the launcher, its processes end only by their own time-outs"
        )
        return
    try:
        while connection.recv(64):
            pass
        why = "the launcher has ended"
    except OSError as error:
        why = f"the launcher cannot be reached any more ({error.strerror})"
    _end(why)


def _connect(address: str, port: int) -> socket.socket | None:
    try:
        connection = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
        # Behind a jump host the port may belong to another program.
        if connection.recv(len(GREETING)) != GREETING:
            return None
        connection.settimeout(None)
        keep_alive(connection)
        return connection
    except OSError:
        return None


def _end(why: str) -> None:
    try:
        logger.error(f"{why}: ending the processes of this host")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def dies_with_parent(number: int = signal.SIGKILL) -> Callable[[], None]:
    """A ``preexec_fn``: the kernel sends signal ``number`` when the parent has ended (Linux)."""

    def prepare() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, int(number))

    return prepare
