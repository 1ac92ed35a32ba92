"""The reason that a row keeps: the cause of a failure, in one line, not its consequence."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsmoe.benchmark.run.marks import FAILED, LOST_PEER, STARTED, Mark, parse_mark
from dsmoe.benchmark.run.reasons import reason
from dsmoe.benchmark.train.failure import explain


def over_a_full_disk() -> RuntimeError:
    """What torch.save raises where a write within it fails."""
    error = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 98816")
    error.__context__ = OSError(28, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "kind", "expected"),
    [
        (MemoryError(), FAILED, "out of memory at iteration 3"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), FAILED, "Tried to allocate"),
        (OSError(28, "No space left on device", "/x/it.jsonl"), FAILED, "/x/it.jsonl: No space"),
        (over_a_full_disk(), FAILED, "the disk is full at iteration 3: the output folder: No"),
        (RuntimeError("listen: port: 5, name: EADDRINUSE"), FAILED, "the port of the process"),
        (RuntimeError("[gloo/pair.cc:553] Connection closed by peer"), LOST_PEER, "Connection"),
        (RuntimeError("shape mismatch\nhere"), FAILED, "RuntimeError at iteration 3: shape"),
        (KeyboardInterrupt(), FAILED, "KeyboardInterrupt"),
    ],
)
def test_exceptions_in_words(error: BaseException, kind: str, expected: str) -> None:
    found, words = explain(error, "at iteration 3")
    assert found == kind and expected in words and "\n" not in words


DIED = "n2: deepspeed: error: rank 3 on n2 (process 77) was killed by signal 9 (SIGKILL)"
STATUS = "deepspeed: error: rank 1 on n1 (process 78) ended with exit status 7"
HOST = "deepspeed: error: host n2: exited with exit code 1; ending all hosts"


def test_the_reason_is_the_cause_and_not_its_consequence() -> None:
    lost, started = Mark(0, LOST_PEER, 1, "peer gone"), [Mark(r, STARTED, 1) for r in (0, 1)]
    said = [*started, lost, Mark(1, FAILED, 2, "out of memory")]
    log = Path("log.txt")
    assert reason(1, said, [DIED], log) == "out of memory"
    assert reason(1, [*started, lost], [DIED], log).startswith("training process 3 was killed by")
    # Killed before the other one failed, or after it: what came first is the cause.
    failed = Mark(1, FAILED, 2, "no such tensor")
    assert "process 3 was killed" in reason(1, [failed], [DIED, failed.line()], log)
    assert reason(1, [failed], [failed.line(), DIED], log) == "no such tensor"
    assert reason(1, [], ["ValueError: no", STATUS, HOST], log).startswith(
        "training process 1 ended with exit status 7: ValueError: no"
    )
    # A process that lost another one is not the cause.
    lost_by_one = Mark(1, LOST_PEER, 2, "peer gone")
    assert reason(1, [lost_by_one], [STATUS, HOST], log).startswith("host n2: exited with")
    assert "process 1 ended without a message" in reason(1, [*started, lost], ["x"], log)
    assert "peer gone" in reason(1, [*started, lost], ["x"], log)
    assert "launcher was killed by signal 9 (SIGKILL)" in reason(-9, started, [], log)
    assert "launcher was killed by signal 15 (SIGTERM)" in reason(143, started, [], log)
    assert "status 7: ValueError: no" in reason(7, [], ["  ValueError: no", "x"], log)
    assert parse_mark("host-1: half a li" + lost.line()) == lost
    assert parse_mark("[dsmoe-rank] {torn") is None and parse_mark("text") is None
