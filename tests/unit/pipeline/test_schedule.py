"""1F1B without processes: a simulation in which every stage waits for its neighbours."""

from __future__ import annotations

from typing import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmoe.benchmark.predict.turns import turns
from dsmoe.common.overlay_modules import load

schedule = load("deepspeed/moe/pipeline/schedule.py")
FORWARD, BACKWARD = schedule.FORWARD, schedule.BACKWARD


def simulate(
    stages: int,
    micro_batches: int,
    name: str = "1f1b",
    message: float = 0,
    forward: Sequence[float] = (),
    backward: Sequence[float] = (),
) -> float:
    """Moments until all passes are done, where a message takes ``message``, and a pass ``forward``
    and ``backward`` of its stage (1 and 2 where they are not given)."""
    takes = {FORWARD: forward or [1] * stages, BACKWARD: backward or [2] * stages}
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
                free[s] = done[s, kind, m] = start + takes[kind][s]
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
    # P micro-batches wait for 2 (P - 1) messages
    assert waits["1f1b"] >= 2 * count * message * (stages - 1) / stages


@pytest.mark.parametrize("name", ["1f1b", "eager"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8, 16])
def test_the_formula_is_exact_for_equal_stages(stages: int, micro_batches: int, name: str) -> None:
    found = turns([1] * stages, [2] * stages, micro_batches, name)
    if micro_batches >= stages:
        assert found == pytest.approx(3 * (micro_batches + stages - 1))
    assert found == pytest.approx(simulate(stages, micro_batches, name))


@pytest.mark.parametrize("name", ["1f1b", "eager"])
@pytest.mark.parametrize("slow", [0, 1, 3])
@pytest.mark.parametrize("factor", [1.1, 1.5, 3.0])
def test_the_formula_is_exact_where_one_stage_is_slower(
    name: str, slow: int, factor: float
) -> None:
    """All of the slowest stage, and of each other one a micro-batch; less, where it follows."""
    times = [factor if stage == slow else 1.0 for stage in range(4)]
    twice = [2 * one for one in times]
    found = turns(times, twice, 32, name)
    assert found == pytest.approx(simulate(4, 32, name, 0, times, twice))
    most = 32 * 3 * factor + 3 * 3
    assert found == pytest.approx(most) if slow == 3 else found < most


#: How far the formula may be from the simulation, below and above, for stages that differ by up to
#: a quarter, and messages up to a forward pass, with at least three micro-batches a stage: 1f1b
#: waits for messages in bursts, which the formula spreads over the step.
#: (Of 180,000 random ones the farthest were -5.4 and +10 % for 1f1b, -1.6 and 0 % for eager.)
BELOW, ABOVE = {"1f1b": 0.07, "eager": 0.03}, {"1f1b": 0.12, "eager": 0.002}


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_the_formula_is_near_for_stages_and_messages_of_all_kinds(data: st.DataObject) -> None:
    stages, name = data.draw(st.integers(2, 8)), data.draw(st.sampled_from(["1f1b", "eager"]))
    count = stages * data.draw(st.integers(3, 8))
    speed = st.floats(0.8, 1.0)
    forward = [data.draw(speed) for _ in range(stages)]
    ratio, message = data.draw(st.floats(1.5, 3.0)), data.draw(st.floats(0.0, 1.0))
    backward = [ratio * one for one in forward]
    true = simulate(stages, count, name, message, forward, backward)
    found = turns(forward, backward, count, name, message)
    assert (1 - BELOW[name]) * true <= found <= (1 + ABOVE[name]) * true


def test_a_link_that_is_slower_than_the_stages_makes_the_time() -> None:
    """Of 64 micro-batches, each of which occupies it for longer than a stage computes."""
    free, busy = (turns([1, 1], [2, 2], 64, "eager", 0.0, line) for line in (0.0, 6.0))
    assert free == 3 * 65 and 6 * 61 <= busy <= 6 * 65


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule 'gpipe'; expected one of 1f1b, eager"):
        schedule.one_forward_one_backward(2, 0, 1, "gpipe")


@pytest.mark.parametrize(("stages", "stage", "count"), [(2, 2, 1), (2, -1, 1), (2, 0, 0)])
def test_what_is_no_schedule_is_refused(stages: int, stage: int, count: int) -> None:
    with pytest.raises(ValueError, match="expected a stage from 0 and at least one micro-batch"):
        schedule.one_forward_one_backward(stages, stage, count)
