"""Messages between the GPUs of one host, sent by copy engines instead of multiprocessors.

NCCL's kernels occupy multiprocessors while they send, so that concurrent products are slower
(figures: docs/lab/performance.md). Here every process has an inbox in memory that the others
write to (torch's symmetric memory). A sender copies its message there and sets a flag; the
receiver's stream waits for the flag (``cuStreamWaitValue32``), copies the message out and sets a
flag of the sender, which frees the place. Every flag returns to its first value, so that a CUDA
graph can repeat an exchange. (In a CUDA graph the driver copies within a GPU by small kernels.)
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .policy import kernels

FLAG_BYTES = 16  # reserved for one flag
_ALIGNMENT = 512
_EQUAL = 1  # CU_STREAM_WAIT_VALUE_EQ
TRIAL_SECONDS = 30
# By the name of a group; with the group, since torch reuses the names of destroyed groups.
_inboxes: dict[str, tuple[Any, Inbox | None]] = {}
_recorded: list[Inbox] = []  # replaced ones that a CUDA graph still uses


def inbox_for(
    name: str, group: Any, size: int, otherwise: str = "tokens are exchanged by NCCL"
) -> Inbox | None:
    """This process's inbox among those of ``group``, for messages of ``size`` bytes from each.

    All processes of the group call this together, with the same size. Returns None, after the
    warning ``otherwise`` with the reason, where they cannot; that is decided once a group.
    """
    of, known = _inboxes.get(name, (None, None))
    decided = of is not None and of() is group
    if decided and (known is None or known.size >= size):
        return known
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "an exchange grew while a CUDA graph was recorded; run it once before recording"
        )
    torch.cuda.synchronize()  # no stream uses the former inbox any more
    if decided and known is not None and known.recorded:
        _recorded.append(known)
    inbox, reason = None, problem(group)
    if reason is None:
        inbox, reason = connect(group, size)
    if reason is not None and dist.get_rank(group) == 0:
        kernels().fall_back(f"{otherwise}: {reason}")
    _inboxes[name] = weakref.ref(group), None if reason else inbox
    return _inboxes[name][1]


def connected(name: str | None) -> bool:
    """Whether the group of this name exchanges messages by copy engines."""
    return _inboxes.get(name or "", (None, None))[1] is not None


def forget() -> None:
    """Decide again for every group at its next message; for tests."""
    _inboxes.clear()
    _recorded.clear()


def problem(group: Any) -> str | None:
    """Why the processes of ``group`` cannot write to each other's memory; None if they can."""
    own = torch.cuda.current_device()
    all_of = gather_answers(group, (socket.gethostname(), _boot(), own, _missing()))
    if len({host[:2] for host in all_of}) > 1:
        return "its processes are on several hosts"
    for missing in (host[3] for host in all_of):
        if missing:
            return missing
    devices = [host[2] for host in all_of]
    count = min(gather_answers(group, torch.cuda.device_count()))
    if len(set(devices)) < len(devices) or max(devices) >= count:
        return "its processes do not see each other's GPUs"
    reached = [torch.cuda.can_device_access_peer(own, d) for d in devices if d != own]
    return (
        None if all(gather_answers(group, all(reached))) else "a GPU cannot reach another's memory"
    )


def connect(group: Any, size: int) -> tuple[Inbox | None, str | None]:
    """An inbox that has delivered one message from each process, or the reason why there is none.

    All processes finish a step before any of them begins the next one.

    Raises:
        RuntimeError: if a message never arrives, since the stream then waits for ever.
    """
    inbox: Any = None
    acts = (lambda _: Inbox(group, size), lambda box: box.join(group), lambda box: box.try_it())
    for act in acts:
        reason = None
        try:
            inbox = act(inbox) or inbox
        except _NeverCame:
            raise
        except Exception as error:  # any error of the driver or of torch means no inbox
            words = str(error).split("\n")[0]
            reason = f"{type(error).__name__}: {words}"
        reason = next(filter(None, gather_answers(group, reason)), None)
        if reason is not None:
            return None, reason
    return inbox, None


class _NeverCame(RuntimeError):
    """The run must end: nothing can stop the stream that waits."""


def gather_answers(group: Any, answer: Any) -> list[Any]:
    """The answers of all processes of the group."""
    answers: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(answers, answer, group=group)
    return answers


def _boot() -> str:
    """The boot id of the kernel: it differs between machines of the same name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return ""


def _missing() -> str | None:
    try:
        import torch.distributed._symmetric_memory as symmetric

        _ = symmetric.empty, symmetric.rendezvous  # torch 2.6
        stream_wait_value()
    except (ImportError, AttributeError, OSError) as error:
        return f"torch {torch.__version__} or the driver lacks something ({error})"
    return None


def inbox_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def stream_wait_value() -> Any:
    """The function cuStreamWaitValue32 of the driver that torch has loaded."""
    driver = ctypes.CDLL("libcuda.so.1")
    function = getattr(driver, "cuStreamWaitValue32_v2", None) or driver.cuStreamWaitValue32
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint]
    return function


class Inbox:
    """One place for a message of each other process, and the flags that say which are filled."""

    def __init__(self, group: Any, size: int) -> None:
        import torch.distributed._symmetric_memory as symmetric

        # Multicast is not needed, and it uses a resource of the host's switch that others share.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        self.size = -(-size // _ALIGNMENT) * _ALIGNMENT
        self.rank, self.processes = dist.get_rank(group), dist.get_world_size(group)
        self.wait_value = stream_wait_value()
        device = inbox_device()
        self.stream = torch.cuda.Stream(device)
        self.zero, self.one = (
            torch.full((1,), i, dtype=torch.int32, device=device) for i in (0, 1)
        )
        head = 2 * self.processes * FLAG_BYTES
        self.head = -(-head // _ALIGNMENT) * _ALIGNMENT
        total = self.head + (self.processes - 1) * self.size
        own = symmetric.empty(total, dtype=torch.uint8, device=device)
        own[: self.head].zero_()
        self.memory = [own]
        self.recorded = False

    def join(self, group: Any) -> None:
        """Exchange addresses with the others, once all inboxes exist."""
        import torch.distributed._symmetric_memory as symmetric

        [own] = self.memory
        self.handle = symmetric.rendezvous(own, group)
        self.memory = [
            own if p == self.rank else self.handle.get_buffer(p, (own.numel(),), torch.uint8)
            for p in range(self.processes)
        ]
        for p in range(self.processes):
            self._free(self.rank, p).copy_(self.one)
        torch.cuda.synchronize()

    def try_it(self) -> None:
        """Swap two small messages with everyone.

        Raises:
            RuntimeError: if one arrives changed, or not at all.
        """
        others = [p for p in range(self.processes) if p != self.rank]
        number = torch.full((64,), self.rank, device=self.one.device)
        got = [torch.full_like(number, -1) for _ in others]
        for _ in range(2):
            swap = self.swap(others, [[number]] * len(others), [[g] for g in got], [])
        deadline = time.monotonic() + TRIAL_SECONDS
        while not swap.done.query():
            if time.monotonic() > deadline:
                raise _NeverCame(
                    f"a message by the GPUs' copy engines did not arrive within {TRIAL_SECONDS} s;"
                    " train with DSMOE_KERNELS=nccl, and please report it"
                )
            time.sleep(0.001)
        swap.wait()
        if not all(bool((g == p).all()) for g, p in zip(got, others)):
            raise RuntimeError("a message arrived changed")

    def _arrived(self, process: int, sender: int) -> Tensor:
        """``process``'s flag: 1 while a message of ``sender`` lies there."""
        return self._flag(process, 2 * sender)

    def _free(self, process: int, receiver: int) -> Tensor:
        """``process``'s flag: 1 while its place in ``receiver``'s inbox is free."""
        return self._flag(process, 2 * receiver + 1)

    def _flag(self, process: int, i: int) -> Tensor:
        return self.memory[process][i * FLAG_BYTES :][:4].view(torch.int32)

    def _place(self, process: int, sender: int) -> Tensor:
        place = sender - (sender > process)  # no process writes to its own inbox
        return self.memory[process][self.head + place * self.size :][: self.size]

    def _wait_for(self, flag: Tensor) -> None:
        status = self.wait_value(self.stream.cuda_stream, flag.data_ptr(), 1, _EQUAL)
        if status:
            raise RuntimeError(
                f"cuStreamWaitValue32 returned {status}; train with DSMOE_KERNELS=nccl"
            )

    def swap(
        self,
        others: list[int],
        sent: list[list[Tensor]],
        received: list[list[Tensor]],
        moved: list[tuple[Tensor, Tensor]],
    ) -> Swap:
        """Start sending and receiving, for each of ``others`` the tensors of a list; then copy the
        first to the second of each pair in ``moved``. All tensors are contiguous."""
        self.recorded |= torch.cuda.is_current_stream_capturing()
        now = torch.cuda.current_stream()
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream):
            for peer, tensors in zip(others, sent):
                self._wait_for(self._free(self.rank, peer))
                self._free(self.rank, peer).copy_(self.zero)
                _copy_all(tensors, self._place(peer, self.rank), out_of_place=False)
                self._arrived(peer, self.rank).copy_(self.one)
            for source, target in moved:
                target.copy_(source)
            for peer, tensors in zip(others, received):
                self._wait_for(self._arrived(self.rank, peer))
                _copy_all(tensors, self._place(self.rank, peer), out_of_place=True)
                self._arrived(self.rank, peer).copy_(self.zero)
                self._free(peer, self.rank).copy_(self.one)
            return Swap(self.stream.record_event())


class Swap:
    """An exchange that was started."""

    def __init__(self, done: torch.cuda.Event) -> None:
        self.done = done

    def wait(self) -> None:
        """Make the current stream wait until all messages are received and all tensors are sent."""
        torch.cuda.current_stream().wait_event(self.done)


def _copy_all(tensors: list[Tensor], place: Tensor, out_of_place: bool) -> None:
    """Copy ``tensors`` to ``place`` one after another, or out of it."""
    offset = 0
    for tensor in tensors:
        part = place[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        offset += tensor.nbytes
        tensor.copy_(part) if out_of_place else part.copy_(tensor)
