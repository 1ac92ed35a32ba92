"""When a stage of a pipeline posts its receives, and how its messages travel."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.moe.pipeline.messages import host_transport, overlapped, transport
from deepspeed.moe.pipeline.schedule import FORWARD, one_forward_one_backward
from support import patched
from support.ranks import run_ranks
from torch import Tensor


class Recorder:
    """Stands for a transport: notes what is posted, and has all messages at once."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, int, str]] = []

    def prepare(self, size: int) -> None:
        assert size == 1 * 2 * 4 * 4

    def receive(self, place: Tensor, source: int, way: str) -> Any:
        self.posts.append(("receive", source, way))
        return SimpleNamespace(wait=lambda: None)

    def send(self, value: Tensor, to: int, way: str) -> Any:
        self.posts.append(("send", to, way))
        return SimpleNamespace(wait=lambda: None)


def test_no_gradient_is_awaited_before_its_hidden_states_are_sent() -> None:
    """On a GPU a waiting receive would hold up whatever waits for the whole device."""
    groups, recorder = SimpleNamespace(stages=3, stage=1, first=False, last=False), Recorder()
    form, cpu = (1, 2, 4), torch.device("cpu")
    messages = overlapped.Messages(groups, recorder, form, torch.float32, cpu, 2)
    assert recorder.posts == [("receive", 0, "down")]  # needs nothing from this process
    for _ in range(2):
        messages.send_hidden(messages.receive_hidden())
    assert ("receive", 2, "up") not in recorder.posts
    for _ in range(2):
        messages.send_gradient(messages.receive_gradient())
    assert recorder.posts[-4:] == [
        ("receive", 2, "up"),
        ("receive", 2, "up"),
        ("send", 0, "up"),
        ("send", 0, "up"),
    ]
    messages.finish()


@pytest.mark.parametrize("schedule", ["1f1b", "eager"])
@pytest.mark.parametrize("stages", [2, 5])
def test_what_was_sent_is_kept_until_it_has_arrived_and_no_longer(
    stages: int, schedule: str
) -> None:
    """Of a stage in the middle: as many hidden states as it has activations, a few gradients."""
    stage = stages // 2
    groups = SimpleNamespace(stages=stages, stage=stage, first=stage == 0, last=stage == stages - 1)
    form, count = (1, 2, 4), 20
    carrier = SimpleNamespace(
        prepare=lambda size: None,
        receive=lambda *given: SimpleNamespace(wait=lambda: None),
        send=lambda *given: SimpleNamespace(wait=lambda: None),
    )
    messages = overlapped.Messages(groups, carrier, form, torch.float32, torch.device("cpu"), count)
    hidden = torch.zeros(form)
    order = one_forward_one_backward(stages, stage, count, schedule)
    for passed, one in enumerate(order, 1):
        if one.kind == FORWARD and not groups.last:
            messages.send_hidden(hidden)
        elif one.kind != FORWARD:
            if not groups.last:
                messages.receive_gradient()
            messages.send_gradient(hidden)
        active = sum(1 if o.kind == FORWARD else -1 for o in order[:passed])
        assert len(messages.sent["down"]) == (0 if groups.last else active)
        assert len(messages.sent["up"]) <= 2 * stages - 1
    messages.finish()
    assert not messages.sent["down"] and not messages.sent["up"]


@pytest.mark.parametrize("processes", [2, 4])
def test_messages_through_the_hosts_memory_change_nothing(processes: int) -> None:
    """To the bit; with four stages two of them send and receive both ways at the same time."""
    scenario = {"stages": processes, "accumulation": 6, "steps": 3}
    for found in run_ranks(processes, "train_by_host", scenario):
        group, host = found["GroupTransport"], found["HostTransport"]
        assert (host["losses"], host["norms"]) == (group["losses"], group["norms"])
        for name, weight in group["weights"].items():
            assert torch.equal(host["weights"][name], weight), name


def test_an_error_of_a_message_is_raised_where_it_is_waited_for() -> None:
    courier = host_transport.Courier("test")
    assert courier.give(lambda: 3).result() == 3

    def fail() -> None:
        raise RuntimeError("the other end is gone")

    waiting = host_transport.Pending(courier.give(fail))
    with pytest.raises(RuntimeError, match="the other end is gone"):
        waiting.wait()
    assert courier.give(lambda: 4).result() == 4  # the thread goes on


def test_a_courier_holds_no_message_that_is_gone() -> None:
    courier, message = host_transport.Courier("test"), torch.zeros(8)
    gone = weakref.ref(message)
    courier.give(functools.partial(message.sum)).result()
    del message
    deadline = time.monotonic() + 120
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone() is None


def test_a_courier_ends_with_its_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_transport, "LAST_SECONDS", 120)
    name = "courier of a test"
    courier = host_transport.Courier(name)
    courier.give(lambda: None).result()
    [thread] = [t for t in threading.enumerate() if t.name == name]
    del courier  # waits for the thread
    assert not thread.is_alive()


ENDS = """
import atexit, sys, threading

def say():  # registered first, so it is called last
    left = [thread.name for thread in threading.enumerate() if thread.name in ("send", "receive")]
    print("left", len(left), file=sys.stderr)

atexit.register(say)
import torch
import torch.distributed as dist
from deepspeed.moe.pipeline import make_stage_groups
from deepspeed.moe.pipeline.messages import host_transport

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
groups = make_stage_groups(2)
groups.host_down = [dist.new_group() for _ in range(8)]
groups.host_up = [dist.new_group() for _ in range(8)]
messages = host_transport.HostTransport(groups, torch.device("cpu"))
place = torch.zeros(2**22)
if rank == 0:
    messages.send(place + 7, 1, "down").wait()
    messages.receive(place, 1, "up").wait()
else:
    messages.receive(place, 0, "down").wait()
    messages.send(place, 0, "up").wait()
assert place.eq(7).all()
dist.destroy_process_group()
"""


@pytest.mark.long
def test_a_process_ends_in_order_after_messages(tmp_path: Path) -> None:
    """Threads that the interpreter finds at its end abort the process in C++."""
    command = [sys.executable, "-c", ENDS]
    environment = {**os.environ, "PYTHONPATH": str(patched.importable())}
    both = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, env=environment
        )
        for rank in range(2)
    ]
    for process in both:
        words = process.communicate(timeout=300)[1].decode()
        assert process.returncode == 0, words
        assert "left 0" in words


@pytest.mark.parametrize(
    ("problem", "inbox", "expected"),
    [(None, True, "copy engines"), ("several hosts", True, "gloo"), (None, False, "gloo")],
)
def test_copy_engines_where_all_of_a_column_have_them(
    problem: str | None, inbox: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = transport.copy_engines
    monkeypatch.setattr(engines, "problem", lambda group: problem)
    monkeypatch.setattr(
        engines, "inbox_for", lambda *given: SimpleNamespace(stream=None) if inbox else None
    )
    monkeypatch.setattr(transport, "group_name", lambda group: group)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    host = SimpleNamespace(name="gloo")
    monkeypatch.setattr(transport, "HostTransport", lambda groups, device: host)
    groups: Any = SimpleNamespace(down="down", up="up", host_down=["gloo"])
    found = transport.choose(groups, torch.device("cuda"))
    assert found.name == expected
    if expected == "copy engines":  # a stage in the middle sends and receives at the same time
        assert len({id(box.stream) for box in found.boxes.values()}) == 4
