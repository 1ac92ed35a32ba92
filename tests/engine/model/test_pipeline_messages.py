"""When a stage of a pipeline posts its receives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.moe.pipeline import exchange
from torch import Tensor


class Recorder:
    """Stands for torch.distributed: notes what is posted, and has all messages at once."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, int, str]] = []

    def irecv(self, place: Tensor, source: int, group: str) -> Any:
        self.posts.append(("receive", source, group))
        return SimpleNamespace(wait=lambda: None)

    def isend(self, value: Tensor, to: int, group: str) -> Any:
        self.posts.append(("send", to, group))
        return SimpleNamespace(wait=lambda: None)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(exchange, "dist", made)
    return made


def test_no_gradient_is_awaited_before_its_hidden_states_are_sent(recorder: Recorder) -> None:
    """On a GPU a waiting receive would hold up whatever waits for the whole device."""
    groups = SimpleNamespace(
        stages=3, stage=1, ranks=[0, 1, 2], first=False, last=False, down="down", up="up"
    )
    messages = exchange.Messages(groups, (1, 2, 4), torch.float32, torch.device("cpu"), 2)
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
