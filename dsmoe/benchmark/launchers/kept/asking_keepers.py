"""Hosts asked through their keepers: one a host runs Python on a text and hands on what it says."""

from __future__ import annotations

import sys
import time
from typing import Callable

from dsmoe.benchmark.launchers.kept.hub import Hub, Peer
from dsmoe.benchmark.preflight.asking import ANSWER_SECONDS, Reply

POLL_SECONDS = 0.05


def ask_kept(
    hub: Hub,
    ranks: list[int],
    script: str,
    launcher_code: Callable[[], int | None],
    last_words: Callable[[], str],
) -> list[Reply]:
    """The replies of the keepers ``ranks``; one that is lost or late has not been reached.

    ``launcher_code()`` is the exit code of what starts the keepers, None while that runs, and
    ``last_words()`` what it has said.
    """
    lines: dict[int, list[str]] = {rank: [] for rank in ranks}
    hub.on_line = lambda peer, text: lines[peer.rank].append(text) if peer.rank in lines else None
    deadline = time.monotonic() + ANSWER_SECONDS
    begin: dict[int, float] = {}
    end: dict[int, float] = {}
    while time.monotonic() < deadline and len(end) < len(ranks):
        code = launcher_code()
        for rank in ranks:
            peer = hub.peers.get(rank)
            if peer is None:
                if code is not None:
                    end.setdefault(rank, time.time())
            elif rank not in begin:
                begin[rank] = time.time()
                peer.ended = None
                message = {"do": "start", "command": [sys.executable, "-"], "input": script}
                hub.send(peer, {**message, "environment": {}, "on_host": 1})
            elif peer.ended is not None or peer.lost():
                end.setdefault(rank, time.time())
        time.sleep(POLL_SECONDS)
    hub.on_line = lambda peer, text: None
    now = time.time()
    return [
        _reply(hub.peers.get(r), lines[r], begin.get(r, now), end.get(r, now), last_words)
        for r in ranks
    ]


def _reply(
    peer: Peer | None, lines: list[str], begin: float, end: float, last_words: Callable[[], str]
) -> Reply:
    if peer is None:
        said = last_words() or "its launcher gave no reason"
        return Reply(begin, end, lines, f"no process was started there: {said}", reached=False)
    if peer.ended is None:
        why = last_words() or peer.gone or f"no answer within {ANSWER_SECONDS:g} s"
        return Reply(begin, end, lines, why, reached=False)
    error = "" if peer.ended == 0 else (lines or [f"exit status {peer.ended}"])[-1]
    return Reply(begin, end, lines, error)
