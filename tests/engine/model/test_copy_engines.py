"""Messages by copy engines: on the CPU their flags, with threads as GPUs; on two GPUs all of it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator

import pytest
import torch
import torch.multiprocessing as mp
from deepspeed.moe.kernels import copy_engines

if not hasattr(torch.Tensor, "nbytes"):
    pytest.skip("torch before 2 has no symmetric memory", allow_module_level=True)
GOOD = ("host", "boot", 0, None)


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    copy_engines.forget()
    yield
    copy_engines.forget()


def answers(monkeypatch: pytest.MonkeyPatch, *of_all: list[Any]) -> None:
    """What the processes say to each question, in turn."""
    given = iter(of_all)
    monkeypatch.setattr(copy_engines, "gather_answers", lambda group, answer: next(given))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: True)


@pytest.mark.parametrize(
    ("of_all", "reason"),
    [
        ([[GOOD, ("other", "boot", 1, None)]], "several hosts"),
        ([[GOOD, ("host", "another", 1, None)]], "several hosts"),  # two machines of one name
        ([[GOOD, ("host", "boot", 1, "torch is too old")]], "torch is too old"),
        ([[GOOD, GOOD], [1, 1]], "do not see each other's GPUs"),  # one visible GPU each
        ([[GOOD, ("host", "boot", 1, None)], [2, 1]], "do not see each other's GPUs"),
        ([[GOOD, ("host", "boot", 1, None)], [2, 2], [True, False]], "cannot reach"),
        ([[GOOD, ("host", "boot", 1, None)], [2, 2], [True, True]], None),
    ],
)
def test_copy_engines_need_one_host_and_peer_access(
    of_all: list[Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, *of_all)
    found = copy_engines.problem(None)
    assert found is None if reason is None else reason in (found or "")


def test_the_reason_for_nccl_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 0)
    monkeypatch.setattr(copy_engines, "problem", lambda group: "they are far apart")
    group = Group()
    with pytest.warns(UserWarning, match="exchanged by NCCL: they are far apart"):
        assert copy_engines.inbox_for("group", group, 8) is None
    monkeypatch.setattr(copy_engines, "problem", lambda group: pytest.fail("asked again"))
    assert copy_engines.inbox_for("group", group, 16) is None
    assert not copy_engines.connected("group")


class Trial:
    """An inbox whose acts go as they are told."""

    def __init__(self, fails_at: str | None) -> None:
        self.fails_at = fails_at
        self.done: list[str] = []
        self.act("made")

    def act(self, name: str) -> None:
        if name == self.fails_at:
            raise RuntimeError(f"not {name}\nand more words")
        self.done.append(name)

    def join(self, group: Any) -> None:
        self.act("joined")

    def try_it(self) -> None:
        self.act("tried")


@pytest.mark.parametrize("fails_at", ["made", "joined", "tried", None])
@pytest.mark.parametrize("here", [True, False])
def test_a_failure_on_one_process_stops_all_before_the_next_step(
    fails_at: str | None, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the next step a process would wait for the others for ever."""
    acts = ["made", "joined", "tried"]
    asked = iter(acts)

    def gather(group: Any, reason: str | None) -> list[str | None]:
        act = next(asked)
        return [reason, f"RuntimeError: not {act}" if act == fails_at and not here else None]

    monkeypatch.setattr(copy_engines, "gather_answers", gather)
    trial: list[Trial] = []

    def make(group: Any, size: int) -> Trial:
        trial.append(Trial(fails_at if here else None))
        return trial[0]

    monkeypatch.setattr(copy_engines, "Inbox", make)
    inbox, reason = copy_engines.connect(None, 8)
    if fails_at is None:
        assert (inbox, reason) == (trial[0], None)
        assert trial[0].done == acts
    else:
        assert (inbox, reason) == (None, f"RuntimeError: not {fails_at}")
        assert list(asked) == acts[acts.index(fails_at) + 1 :]


class Group:
    """A group as far as it is told from another one."""


class Stub:
    """An inbox as far as it is kept or replaced."""

    def __init__(self, size: int) -> None:
        self.size, self.recorded = size, False


@pytest.fixture
def connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that reach each other's memory."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(copy_engines, "problem", lambda group: None)
    monkeypatch.setattr(copy_engines, "connect", lambda group, size: (Stub(size), None))


def test_larger_messages_and_new_groups_get_new_inboxes(connecting: None) -> None:
    group = Group()
    first = copy_engines.inbox_for("0", group, 8)
    assert copy_engines.inbox_for("0", group, 4) is first
    assert copy_engines.connected("0")
    larger = copy_engines.inbox_for("0", group, 16)
    assert larger.size == 16
    # torch gives a name again after the end of the group that had it
    assert copy_engines.inbox_for("0", Group(), 8) is not larger


@pytest.mark.parametrize("recorded", [True, False])
def test_a_replaced_inbox_lives_on_if_a_cuda_graph_uses_it(
    recorded: bool, connecting: None
) -> None:
    group = Group()
    first = copy_engines.inbox_for("0", group, 8)
    first.recorded, lives = recorded, weakref.ref(first)
    del first
    copy_engines.inbox_for("0", group, 16)
    gc.collect()
    assert (lives() is not None) == recorded


class Machine:
    """GPUs whose memory is the host's, and whose streams are the threads that use them."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = count
        self.memory: dict[int, torch.Tensor] = {}
        self.met = threading.Barrier(count, timeout=30)
        self.groups = [SimpleNamespace(rank=rank) for rank in range(count)]
        symmetric = pytest.importorskip("torch.distributed._symmetric_memory")
        event = SimpleNamespace(query=lambda: True)
        stream = SimpleNamespace(
            cuda_stream=0, wait_stream=lambda s: None, record_event=lambda: event
        )
        for module, name, stand_in in (
            (symmetric, "empty", lambda n, dtype, device: torch.full((n,), 7, dtype=dtype)),
            (symmetric, "rendezvous", self.rendezvous),
            (copy_engines, "inbox_device", lambda: torch.device("cpu")),
            (copy_engines, "stream_wait_value", lambda: self.wait_value),
            (torch.distributed, "get_rank", lambda group: group.rank),
            (torch.distributed, "get_world_size", lambda group: count),
            (torch.cuda, "Stream", lambda device: stream),
            (torch.cuda, "synchronize", lambda: None),
            (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
            (
                torch.cuda,
                "current_stream",
                lambda: SimpleNamespace(wait_event=lambda event: None),
            ),
            (torch.cuda, "is_current_stream_capturing", lambda: False),
        ):
            monkeypatch.setattr(module, name, stand_in)

    def rendezvous(self, own: torch.Tensor, group: Any) -> Any:
        self.memory[group.rank] = own
        self.met.wait()
        return SimpleNamespace(get_buffer=lambda p, size, dtype: self.memory[p])

    @staticmethod
    def wait_value(stream: int, address: int, value: int, how: int) -> int:
        """What cuStreamWaitValue32 has a stream do."""
        place = ctypes.c_uint32.from_address(address)
        deadline = time.monotonic() + 30
        while place.value != value:
            assert time.monotonic() < deadline
            time.sleep(0)
        return 0

    def run(self, work: Callable[[copy_engines.Inbox], Any], size: int = 64) -> list[Any]:
        """What ``work`` gives with the inbox of each process; threads are the processes."""
        found: list[Any] = [None] * self.count

        def thread(group: Any) -> None:
            inbox = copy_engines.Inbox(group, size)
            inbox.join(group)
            self.met.wait()
            inbox.try_it()
            found[group.rank] = work(inbox)

        threads = [threading.Thread(target=thread, args=(group,)) for group in self.groups]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
        return found


@pytest.mark.parametrize("count", [2, 3])
def test_no_message_is_lost_or_written_over(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(count, monkeypatch)

    def work(inbox: copy_engines.Inbox) -> int:
        wait = random.Random(inbox.rank)
        others = [p for p in range(count) if p != inbox.rank]
        for step in range(60):
            if wait.random() < 0.2:
                time.sleep(wait.random() / 100)
            sent = [[torch.full((2,), 100 * step + 10 * inbox.rank + p)] for p in others]
            got = [[torch.empty(1, dtype=torch.long) for _ in range(2)] for _ in others]
            copied = torch.empty(3)
            moved = [(torch.full((3,), float(step)), copied)]
            inbox.swap(others, sent, got, moved).wait()
            for p, parts in zip(others, got):
                assert [t.item() for t in parts] == [100 * step + 10 * p + inbox.rank] * 2
            assert copied.tolist() == [step] * 3
        return step

    assert machine.run(work) == [59] * count


def test_messages_leave_the_memory_as_they_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a CUDA graph, which repeats what was written and waited for, can be replayed."""
    machine = Machine(2, monkeypatch)

    def work(inbox: copy_engines.Inbox) -> list[torch.Tensor]:
        found = []
        for _ in range(3):
            inbox.swap([1 - inbox.rank], [[torch.ones(4)]], [[torch.empty(4)]], []).wait()
            machine.met.wait()
            found.append(machine.memory[inbox.rank].clone())
            machine.met.wait()
        return found

    for first, second, third in machine.run(work):
        assert torch.equal(first, second) and torch.equal(second, third)


def test_a_message_that_never_comes_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(1, monkeypatch)
    [inbox] = machine.run(lambda inbox: inbox)
    inbox.stream.record_event = lambda: SimpleNamespace(query=lambda: False)
    monkeypatch.setattr(copy_engines, "TRIAL_SECONDS", 0.01)
    with pytest.raises(RuntimeError, match=r"did not arrive within .* DSMOE_KERNELS=nccl"):
        inbox.try_it()


def on_a_gpu(rank: int, folder: str) -> None:
    import torch.distributed as dist
    from deepspeed.moe.kernels import exchanged_experts, policy

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    sizes = [(8, 264, 64), (4, 64, 256), (4, 256), (4, 256, 64), (4, 64)]
    inputs = [torch.randn(size, device="cuda", dtype=torch.bfloat16) / 8 for size in sizes]
    gradient = torch.randn_like(inputs[0])
    name = dist.group.WORLD.group_name

    def both() -> list[torch.Tensor]:
        y, *kept = exchanged_experts.forward(*inputs, name)
        return [y, *exchanged_experts.backward(gradient, *kept, inputs[1], inputs[3], name)]

    found = policy.kernels().libraries()
    by_nccl = policy.KernelPolicy(found._replace(copy_engines=False))
    policy.use(by_nccl)
    expected = both()
    policy.use(policy.KernelPolicy(found._replace(copy_engines=True)))
    equal = []
    for _ in range(20):
        equal.append(all(torch.equal(a, b) for a, b in zip(both(), expected)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        recorded = both()
    for _ in range(5):
        graph.replay()
        torch.cuda.synchronize()
        equal.append(all(torch.equal(a, b) for a, b in zip(recorded, expected)))
        equal.append(all(torch.equal(a, b) for a, b in zip(both(), expected)))
    larger = torch.randn(8, 2000, 64, device="cuda", dtype=torch.bfloat16) / 8
    y = exchanged_experts.forward(larger, *inputs[1:], name)[0]
    policy.use(by_nccl)
    equal.append(torch.equal(y, exchanged_experts.forward(larger, *inputs[1:], name)[0]))
    for tensor in recorded:
        tensor.zero_()
    graph.replay()  # it has the smaller inbox, which is there still
    equal.append(all(torch.equal(a, b) for a, b in zip(recorded, expected)))
    torch.save((copy_engines.connected(name), equal), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.gpu
def test_equal_to_nccl_on_two_gpus(tmp_path: Path) -> None:
    """To the bit, again and again, in a CUDA graph too, and when messages become larger."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, {torch.cuda.device_count()} here")
    mp.spawn(on_a_gpu, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        connected, equal = torch.load(tmp_path / f"{rank}.pt")
        assert connected
        assert len(equal) == 32
        assert all(equal)
