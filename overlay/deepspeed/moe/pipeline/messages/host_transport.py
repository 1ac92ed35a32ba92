"""Messages between stages through the memory of the hosts, by gloo: a transport (transport.py)."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from concurrent.futures import Future
from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ..stage_groups import StageGroups

LEAST_PART = 2**18  # elements; smaller messages use fewer connections
LAST_SECONDS = 0.5


class HostTransport:
    """Through the memory of the hosts, by gloo: from the device, over the network, to the device.

    A message is cut into parts for several connections, since one is slower than the network of
    many hosts. ``wait`` of a receive blocks the host until the message is on its way to the device,
    so the host cannot start more than the passes whose inputs have come.
    """

    name = "gloo"

    def __init__(self, groups: StageGroups, device: torch.device) -> None:
        self.ranks = groups.ranks
        pairs = {"down": groups.host_down, "up": groups.host_up}
        self.lines = {way: [_Line(g, device) for g in found] for way, found in pairs.items()}

    def prepare(self, size: int) -> None:
        """See :meth:`GroupTransport.prepare`."""

    def send(self, value: Tensor, to: int, way: str) -> Any:
        lines, rank = self.lines[way], self.ranks[to]
        return _All([line.send(part, rank) for line, part in zip(lines, _parts(value, len(lines)))])

    def receive(self, place: Tensor, source: int, way: str) -> Any:
        lines, rank = self.lines[way], self.ranks[source]
        parts = _parts(place, len(lines))
        return _All([line.receive(part, rank) for line, part in zip(lines, parts)])


def _parts(message: Tensor, count: int) -> list[Tensor]:
    """Both sides cut a message in the same way, into up to ``count`` parts."""
    return list(message.view(-1).split(max(-(-message.numel() // count), LEAST_PART)))


class _Line:
    """One connection of a way: its group, and a thread and a stream for sends and for receives."""

    def __init__(self, group: Any, device: torch.device) -> None:
        self.group, self.device = group, device
        self.couriers = {role: Courier(role) for role in ("send", "receive")}
        self.streams = {role: self._stream() for role in ("send", "receive")}

    def send(self, value: Tensor, to: int) -> Any:
        buffer, copied, stream = self._pinned(value), self._event(), self.streams["send"]
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream())
        with _in(stream):
            buffer.copy_(value, non_blocking=True)
            copied.record()

        def ship() -> None:
            copied.synchronize()
            dist.send(buffer, to, group=self.group)

        return Pending(self.couriers["send"].give(ship))

    def receive(self, place: Tensor, source: int) -> Any:
        free = self._event()  # what used this memory before is done
        free.record()

        def fetch() -> Any:
            buffer = self._pinned(place)
            dist.recv(buffer, source, group=self.group)
            arrived = self._event()
            with _in(self.streams["receive"]):
                free.wait()
                place.copy_(buffer, non_blocking=True)
                arrived.record()
            return arrived

        return Pending(self.couriers["receive"].give(fetch))

    def _pinned(self, like: Tensor) -> Tensor:
        """Memory of the host; torch keeps it until copies to and from it are done."""
        pin = self.device.type == "cuda"
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=pin)

    def _stream(self) -> Any:
        return torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def _event(self) -> Any:
        return torch.cuda.Event(blocking=True) if self.device.type == "cuda" else _Done()


def _in(stream: Any) -> Any:
    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


class _Done:
    """The event of a CPU, where everything is done at once."""

    def record(self) -> None:
        pass

    wait = synchronize = record


class Pending:
    """What a courier will have done."""

    def __init__(self, future: Future[Any]) -> None:
        self.future = future

    def wait(self) -> None:
        """Raises what went wrong there."""
        event = self.future.result()
        if event is not None:
            event.wait()


class _All:
    """The parts of a message."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def wait(self) -> None:
        for part in self.parts:
            part.wait()


class Courier:
    """A thread that does what it is given, in order; started with the first job.

    It ends with this object, or with the process.
    """

    def __init__(self, name: str) -> None:
        self.name, self.jobs = name, queue.SimpleQueue()  # type: ignore[var-annotated]
        self.started = False

    def give(self, job: Callable[[], Any]) -> Future[Any]:
        if not self.started:
            self.started = True
            thread = threading.Thread(target=_work, args=(self.jobs,), name=self.name, daemon=True)
            thread.start()
            weakref.finalize(self, _end, self.jobs, thread)
        future: Future[Any] = Future()
        self.jobs.put((future, job))
        return future


def _end(jobs: Any, thread: threading.Thread) -> None:
    """A thread that is left when the interpreter ends can abort the process; one that still waits
    for a message cannot be ended."""
    jobs.put(None)
    thread.join(LAST_SECONDS)


def _work(jobs: Any) -> None:
    while True:
        given = jobs.get()
        if given is None:
            return
        future, job = given
        try:
            future.set_result(job())
        except BaseException as error:  # raised again where the message is waited for
            future.set_exception(error)
        del given, future, job  # they hold the message's memory
