"""Messages by copy engines: their flags on the CPU, threads in the GPUs' place; on two GPUs all."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import pytest
import torch
import torch.multiprocessing as mp
from deepspeed.moe import peer_memory

if not hasattr(torch.Tensor, "nbytes"):
    pytest.skip("torch before 2 has no symmetric memory", allow_module_level=True)
GOOD = ("host", "boot", 0, None)


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    peer_memory.forget()
    yield
    peer_memory.forget()


def answers(monkeypatch: pytest.MonkeyPatch, *of_all: list[Any]) -> None:
    """What the processes say to each question, in turn."""
    given = iter(of_all)
    monkeypatch.setattr(peer_memory, "_gather", lambda group, answer: next(given))
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
def test_where_they_serve(
    of_all: list[Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, *of_all)
    found = peer_memory._problem(None)
    assert found is None if reason is None else reason in (found or "")


def test_a_reason_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: 0)
    monkeypatch.setattr(peer_memory, "_problem", lambda group: "they are far apart")
    with pytest.warns(UserWarning, match="exchanged by NCCL: they are far apart"):
        assert peer_memory.inbox_for("group", None, 8) is None
    monkeypatch.setattr(peer_memory, "_problem", lambda group: pytest.fail("asked again"))
    assert peer_memory.inbox_for("group", None, 16) is None
    assert not peer_memory.serves("group")


def test_an_inbox_that_fails_on_one_is_none_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, [None, "RuntimeError: the other one's"])
    monkeypatch.setattr(peer_memory, "Inbox", lambda group, size: object())
    assert peer_memory._tried(None, 8) == (None, "RuntimeError: the other one's")


def inboxes(count: int, size: int, monkeypatch: pytest.MonkeyPatch) -> list[peer_memory.Inbox]:
    """Of ``count`` threads, whose streams are the threads themselves."""
    nothing = SimpleNamespace(wait_event=lambda event: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: nothing)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    head = 2 * count * peer_memory._FLAG_BYTES
    memory = [torch.zeros(head + (count - 1) * size, dtype=torch.uint8) for _ in range(count)]
    all_of = []
    for rank in range(count):
        inbox = peer_memory.Inbox.__new__(peer_memory.Inbox)
        inbox.size, inbox.head, inbox.rank, inbox.processes = size, head, rank, count
        inbox.memory = memory
        inbox.zero, inbox.one = (torch.full((1,), i, dtype=torch.int32) for i in (0, 1))
        inbox.stream = SimpleNamespace(wait_stream=lambda s: None, record_event=lambda: None)

        def wait(flag: torch.Tensor) -> None:
            deadline = time.monotonic() + 30
            while flag.item() != 1:
                assert time.monotonic() < deadline
                time.sleep(0)

        inbox._wait_for = wait  # type: ignore[method-assign]
        for p in range(count):
            inbox._free(rank, p).copy_(inbox.one)
        all_of.append(inbox)
    return all_of


@pytest.mark.parametrize("count", [2, 3])
def test_no_message_is_lost_or_written_over(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    all_of = inboxes(count, 64, monkeypatch)
    seen: dict[int, list[int]] = {}

    def work(inbox: peer_memory.Inbox) -> None:
        wait = random.Random(inbox.rank)
        others = [p for p in range(count) if p != inbox.rank]
        found = []
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
            found.append(step)
        seen[inbox.rank] = found

    threads = [threading.Thread(target=work, args=(inbox,)) for inbox in all_of]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(seen.get(rank, [])) for rank in range(count)] == [60] * count
    # as at the start, so that a CUDA graph can be replayed
    for inbox in all_of:
        flags = inbox.memory[inbox.rank][: inbox.head : peer_memory._FLAG_BYTES]
        assert flags.view(-1, 2).tolist() == [[0, 1]] * count


def on_a_gpu(rank: int, folder: str) -> None:
    import torch.distributed as dist
    from deepspeed.moe import exchanged_experts
    from deepspeed.moe import kernels as chosen

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    sizes = [(8, 264, 64), (4, 64, 256), (4, 256), (4, 256, 64), (4, 64)]
    inputs = [torch.randn(size, device="cuda", dtype=torch.bfloat16) / 8 for size in sizes]
    gradient = torch.randn_like(inputs[0])
    name = dist.group.WORLD.group_name

    def both() -> list[torch.Tensor]:
        y, *kept = exchanged_experts._forward(*inputs, name)
        return [y, *exchanged_experts._backward(gradient, *kept, inputs[1], inputs[3], name)]

    found = chosen.kernels()
    chosen._found = found._replace(copy_engines=False)
    expected = both()
    chosen._found = found._replace(copy_engines=True)
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
    y = exchanged_experts._forward(larger, *inputs[1:], name)[0]
    chosen._found = found._replace(copy_engines=False)
    equal.append(torch.equal(y, exchanged_experts._forward(larger, *inputs[1:], name)[0]))
    torch.save((peer_memory.serves(name), equal), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.gpu
def test_equal_to_nccl_on_two_gpus(tmp_path: Path) -> None:
    """To the bit, again and again, in a CUDA graph too, and when messages become larger."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, {torch.cuda.device_count()} here")
    mp.spawn(on_a_gpu, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        serves, equal = torch.load(tmp_path / f"{rank}.pt")
        assert serves
        assert len(equal) == 31
        assert all(equal)
