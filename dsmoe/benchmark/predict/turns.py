"""How long the micro-batches of a step take in the stages of a pipeline, whose times differ.

The passes are those of deepspeed/moe/pipeline/schedule.py (overlay/). A simulation that follows
them one by one (tests/unit/pipeline/test_schedule.py) is what this formula is tested against.
"""

from __future__ import annotations

from typing import Sequence

from dsmoe.benchmark.cases.pipelines import ahead_of_next


def turns(
    forward: Sequence[float],
    backward: Sequence[float],
    count: int,
    schedule: str,
    message: float = 0.0,
    line: float = 0.0,
) -> float:
    """Seconds until all passes of ``count`` micro-batches are done.

    ``forward``, ``backward``: seconds of one micro-batch in each stage; ``message``: from stage to
    stage; ``line``: for which a micro-batch occupies a link. The longest of one chain a stage, of
    what must follow one another:

    - the way of the first micro-batch to the stage, and of the last gradient from it to the first;
    - the stage's own passes of all micro-batches, or its share of a round trip through the stages
      behind it, which has as many micro-batches on the way as the schedule is ahead, and one more;
    - at the start and at the end the way through the stages behind it, unless its own passes of the
      micro-batches that it is ahead take longer.

    Stages of equal time, without messages: all of ``count`` and one more for each other stage.
    """
    each = [f + b for f, b in zip(forward, backward)]
    found, before, behind = 0.0, 0.0, sum(each) + 2 * message * (len(each) - 1)
    for stage, own in enumerate(each):
        behind -= own
        ahead = ahead_of_next(schedule) * (len(each) - 1 - stage)
        rest = count - 1 - ahead
        if rest > 0:
            period = max(own, line, (own + behind) / (ahead + 1))
            start = max(ahead * forward[stage], behind)
            end = max(ahead * backward[stage], behind)
            passes = own + start + rest * period + end
        else:  # no micro-batch's passes but the first and last wait
            longer = max(forward[stage], backward[stage])
            passes = own + max((count - 1) * own, behind + (count - 1) * longer)
        found = max(found, before + passes)
        before += own + 2 * message
        behind -= 2 * message
    return found
