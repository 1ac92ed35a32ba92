"""The engine's data loader: batches are counted, epochs differ, a resume goes on (defect 37)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.ranks import run_ranks

SAMPLES = 21  # 11 a process on two, the last batch of 2 is half full


@pytest.mark.parametrize("drop_last, length", [(False, 6), (True, 5)])
@pytest.mark.parametrize("stop", [[0, 2], [1, 1], [0, 6]])
def test_epochs_differ_and_a_resume_goes_on(
    drop_last: bool, length: int, stop: list[int], tmp_path: Path
) -> None:
    """``stop``: within the first epoch, within the second, after the last batch of the first."""
    stop = [stop[0], min(stop[1], length)]
    options = {"dataloader_drop_last": drop_last}
    results = run_ranks(2, "epochs_of_the_loader", SAMPLES, options, str(tmp_path), stop)
    for result in results:
        first, second, third = result["epochs"]
        assert result["length"] == len(first) == len(second) == length
        assert first != second and second != third and first != third
        assert result["resumed"] == result["rest"] and result["rest"]
        assert result["client"] == []  # the place is the engine's, not the user's
    if not drop_last:
        for epoch in range(3):
            seen = [s for result in results for batch in result["epochs"][epoch] for s in batch]
            assert set(seen) == set(range(SAMPLES))


def test_an_epoch_that_is_left_early_is_over() -> None:
    """A loop that is left and begun again has the next epoch's order."""
    batches = run_ranks(1, "left_early", 40)[0]
    assert len({tuple(batch) for batch in batches}) == 3


@pytest.mark.long
def test_a_resume_on_more_processes_takes_the_rest(tmp_path: Path) -> None:
    """Saved by one process after 8 of 24 samples: two processes take the other 16, once each."""
    folder = str(tmp_path)
    (before,) = run_ranks(1, "taken_before_and_after", 24, 4, folder)
    rest = run_ranks(2, "taken_before_and_after", 24, 0, folder)
    taken = [*before, *rest[0], *rest[1]]
    assert len(before) == 8 and sorted(taken) == list(range(24))
