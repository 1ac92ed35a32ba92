"""1F1B without processes: a simulation in which every stage waits for its neighbours."""

from __future__ import annotations

import pytest

from dsmoe.common.overlay import load

schedule = load("deepspeed/moe/pipeline/schedule.py")
FORWARD, BACKWARD = schedule.FORWARD, schedule.BACKWARD


def simulate(stages: int, micro_batches: int) -> int:
    """Moments until all passes are done, where a forward takes 1 and a backward 2."""
    passes = [schedule.one_forward_one_backward(stages, s, micro_batches) for s in range(stages)]
    done: dict[tuple[int, str, int], int] = {}
    at, free = [0] * stages, [0] * stages
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
                start = max([free[s], *(done[need] for need in needs)])
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


@pytest.mark.parametrize(("stages", "stage", "count"), [(2, 2, 1), (2, -1, 1), (2, 0, 0)])
def test_what_is_no_schedule_is_refused(stages: int, stage: int, count: int) -> None:
    with pytest.raises(ValueError, match="expected a stage from 0 and at least one micro-batch"):
        schedule.one_forward_one_backward(stages, stage, count)
