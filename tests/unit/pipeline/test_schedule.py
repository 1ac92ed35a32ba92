"""1F1B without processes: a simulation in which every stage waits for its neighbours."""

from __future__ import annotations

import pytest

from dsmoe.common.overlay import load

schedule = load("deepspeed/moe/pipeline/schedule.py")
FORWARD, BACKWARD = schedule.FORWARD, schedule.BACKWARD


def simulate(stages: int, micro_batches: int, name: str = "1f1b", message: float = 0) -> float:
    """Moments until all passes are done, where a forward takes 1, a backward 2, and a message
    ``message``."""
    passes = [
        schedule.one_forward_one_backward(stages, s, micro_batches, name) for s in range(stages)
    ]
    done: dict[tuple[int, str, int], float] = {}
    at, free = [0] * stages, [0.0] * stages
    while any(a < len(p) for a, p in zip(at, passes)):
        moved = False
        for s in range(stages):
            if at[s] == len(passes[s]):
                continue
            kind, m = passes[s][at[s]]
            needs = [(s - 1, FORWARD, m)] if kind == FORWARD and s else []
            if kind == BACKWARD:
                needs = [(s, FORWARD, m)] + ([(s + 1, BACKWARD, m)] if s < stages - 1 else [])
            if all(need in done for need in needs):
                start = max([free[s], *(done[n] + message * (n[0] != s) for n in needs)])
                free[s] = done[s, kind, m] = start + (1 if kind == FORWARD else 2)
                at[s] += 1
                moved = True
        assert moved, "every stage waits for another one"
    return max(done.values())


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8, 16])
def test_every_pass_once_in_order_without_a_deadlock(stages: int, micro_batches: int) -> None:
    for stage in range(stages):
        passes = schedule.one_forward_one_backward(stages, stage, micro_batches)
        for kind in (FORWARD, BACKWARD):
            assert [p.micro_batch for p in passes if p.kind == kind] == list(range(micro_batches))
        assert schedule.most_held(passes) == min(stages - stage, micro_batches)
    # the bubble of 1F1B: P - 1 forward and backward passes, whatever the micro-batches
    assert simulate(stages, micro_batches) == 3 * (micro_batches + stages - 1)


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8, 16])
def test_eager_runs_further_ahead_in_the_same_time(stages: int, micro_batches: int) -> None:
    for stage in range(stages):
        passes = schedule.one_forward_one_backward(stages, stage, micro_batches, "eager")
        for kind in (FORWARD, BACKWARD):
            assert [p.micro_batch for p in passes if p.kind == kind] == list(range(micro_batches))
        assert schedule.most_held(passes) == min(2 * (stages - 1 - stage) + 1, micro_batches)
    assert simulate(stages, micro_batches, "eager") == simulate(stages, micro_batches)


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
def test_1f1b_waits_for_every_message_and_eager_for_the_first_and_last(stages: int) -> None:
    """Messages of half a forward pass's time, there and back; a step of many micro-batches."""
    count, message = 32, 0.5
    free = simulate(stages, count)
    waits = {name: simulate(stages, count, name, message) - free for name in ("1f1b", "eager")}
    assert waits["eager"] == 2 * (stages - 1) * message
    # as predict_pipeline has it: P micro-batches wait for 2 (P - 1) messages
    assert waits["1f1b"] >= 2 * count * message * (stages - 1) / stages


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule 'gpipe'; expected one of 1f1b, eager"):
        schedule.one_forward_one_backward(2, 0, 1, "gpipe")


@pytest.mark.parametrize(("stages", "stage", "count"), [(2, 2, 1), (2, -1, 1), (2, 0, 0)])
def test_what_is_no_schedule_is_refused(stages: int, stage: int, count: int) -> None:
    with pytest.raises(ValueError, match="expected a stage from 0 and at least one micro-batch"):
        schedule.one_forward_one_backward(stages, stage, count)
