"""When a stage of a pipeline posts its receives, and how its messages travel."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.moe.pipeline import exchange, host_transport
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
    messages = exchange.Messages(groups, recorder, form, torch.float32, cpu, 2)
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


def test_a_courier_ends_with_its_transport() -> None:
    name = "courier of a test"
    courier = host_transport.Courier(name)
    courier.give(lambda: None).result()
    [thread] = [t for t in threading.enumerate() if t.name == name]
    del courier
    thread.join(10)
    assert not thread.is_alive()
