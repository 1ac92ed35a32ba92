"""The command's side of its processes' keepers: a port to which each of them connects (wire.py)."""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable

from dsmoe.benchmark.launchers.kept import wire

#: What a keeper says of itself in its first message, and the type of it.
_SAID = {
    "token": str,
    "rank": int,
    "local_rank": int,
    "world": int,
    "host": str,
    "address": str,
    "port": int,
    "pid": int,
}
# A stranger on the port is heard for so long.
_HELLO_SECONDS = 10.0


@dataclass
class Peer:
    """One keeper: its place, its host, and what became of its process.

    ``ended`` is the process's exit code (negative: a signal); ``asked`` a signal by which
    something else than this command asked the keeper to end; ``gone`` why it is lost;
    ``reached_at`` the address of this machine to which it came.
    """

    rank: int
    local_rank: int
    world: int
    host: str
    address: str
    port: int
    connection: socket.socket
    reached_at: str
    heard: float = field(default_factory=time.monotonic)
    pid: int = 0
    ended: int | None = None
    asked: int | None = None
    gone: str | None = None

    def lost(self) -> str | None:
        """Why the keeper is lost, or None."""
        silent = time.monotonic() - self.heard
        if self.gone is None and silent > wire.SILENT_SECONDS:
            self.gone = f"no message for {wire.SILENT_SECONDS:g} s; it may be cut off or dead"
        return self.gone


class Hub:
    """Waits for ``world`` keepers and speaks with them.

    ``at_head``: this command and rank 0 are on one host, as torchrun has them.
    ``on_line(peer, text)`` gets what their processes print, from several threads.
    """

    def __init__(self, world: int, at_head: bool = False) -> None:
        self.world = world
        self._at_head = at_head
        self.peers: dict[int, Peer] = {}
        self.token = secrets.token_hex(16)
        self.on_line: Callable[[Peer, str], None] = lambda peer, text: None
        self._server = _listen()
        self.port = int(self._server.getsockname()[1])
        self._over = threading.Event()
        self._sending = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def variables(self, address: str) -> dict[str, str]:
        """For the keepers' environment; ``address`` "": Slurm tells them."""
        return {wire.HUB: f"{address}:{self.port}", wire.TOKEN: self.token}

    def head_address(self) -> str:
        """Where the processes meet: the address at which another host has reached this one, if
        that is the head; else the one from which the head has come."""
        head = self.peers[0]
        if self._at_head:
            for peer in self.peers.values():
                if peer.host != head.host:
                    return peer.reached_at
        return _plain(head.address)

    def missing(self) -> list[int]:
        """The ranks of keepers that have not come yet."""
        return [rank for rank in range(self.world) if rank not in self.peers]

    def tell(self, message: dict[str, Any]) -> None:
        """Send ``message`` to every keeper that is still there."""
        for peer in list(self.peers.values()):
            if peer.gone is None:
                self.send(peer, message)

    def send(self, peer: Peer, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), self._sending:  # _hear finds out by itself
            peer.connection.sendall(wire.encode(message))

    def close(self, code: int = 0) -> None:
        """Send the keepers home with exit code ``code``."""
        self._over.set()
        self.tell({"do": "bye", "code": code})
        self._server.close()
        for peer in list(self.peers.values()):
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        peer, begin, gone = None, time.monotonic(), "its keeper has ended without a message"
        lines = wire.Lines(connection)
        try:
            while True:
                messages = lines.read()
                if messages is None:
                    break
                for message in messages:
                    if peer is None:
                        peer = self._greet(message, connection)
                        if peer is None:
                            raise ValueError("a stranger")
                    else:
                        self._take(peer, message)
                if peer is None and time.monotonic() - begin > _HELLO_SECONDS:
                    break
        except (OSError, ValueError, TypeError, KeyError) as error:
            gone = f"its connection broke: {error}"
        if peer is None:
            connection.close()
        elif peer.gone is None:
            peer.gone = gone

    def _greet(self, said: dict[str, Any], connection: socket.socket) -> Peer | None:
        if any(type(said.get(name)) is not kind for name, kind in _SAID.items()):
            return None
        if not hmac.compare_digest(said.pop("token").encode(), self.token.encode()):
            return None
        del said["pid"]
        here = str(connection.getsockname()[0])
        peer = Peer(connection=connection, reached_at=_plain(here), **said)
        if not 0 <= peer.rank < self.world or peer.rank in self.peers:
            return None
        self.peers[peer.rank] = peer
        return peer

    def _take(self, peer: Peer, message: dict[str, Any]) -> None:
        peer.heard = time.monotonic()
        if "out" in message:
            self.on_line(peer, str(message["out"]))
        elif "ended" in message:
            peer.pid, peer.ended = int(message["pid"]), int(message["ended"])
        elif "asked" in message:
            peer.asked = int(message["asked"])

    def _beat(self) -> None:
        while not self._over.wait(wire.BEAT_SECONDS):
            self.tell({})


def _plain(address: str) -> str:
    """Without the prefix that an IPv4 address has on a socket for both."""
    return address[len("::ffff:") :] if address.startswith("::ffff:") else address


def _listen() -> socket.socket:
    """A listening socket for IPv6 and IPv4, or for IPv4 where the host has no other."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
            )
    return socket.create_server(("", 0), backlog=512)
