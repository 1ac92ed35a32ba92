"""Find the release that fixed a defect, by judging releases between two that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

from dsmoe.common.errors import EnvironmentProblem
from dsmoe.common.files import expanded
from dsmoe.defects.listing import Proof
from dsmoe.defects.releases import PUBLISHED, bounds, order, state_of


def environments(folder: str) -> dict[str, Path]:
    """Release -> its Python, for the subfolders of ``folder`` that are named by a release.

    Raises EnvironmentProblem where there is none.
    """
    place = expanded(folder)
    found = {}
    for python in sorted(place.glob("*/bin/python")):
        name = python.parent.parent.name
        if name in PUBLISHED:
            found[name] = python
    if not found:
        raise EnvironmentProblem(
            f"--bisect {folder}: found no environment, expected subfolders named by releases, such "
            "as 0.12.6/bin/python"
        )
    return found


def candidates(
    releases: dict[str, dict[str, Any]], available: Sequence[str], proof: Proof
) -> list[str]:
    """The releases that were not judged yet, between the last with a defect and the next."""
    found = bounds(releases, proof)
    if found is None:
        return []
    lives, after = map(order, found)
    untried = {
        name for name in available if name not in releases or state_of(releases[name], proof) == "-"
    }
    return sorted((name for name in untried if lives < order(name) < after), key=order)


def step(
    releases: dict[str, dict[str, Any]], available: Sequence[str], chosen: Sequence[Proof]
) -> tuple[str, list[Proof]] | None:
    """The release to judge next and the proofs to run there; None where nothing is left.

    It is the middle of most intervals; the proofs are all whose interval it halves.
    """
    wanted: dict[str, list[Proof]] = {}
    for proof in chosen:
        between = candidates(releases, available, proof)
        if between:
            wanted.setdefault(between[len(between) // 2], []).append(proof)
    if not wanted:
        return None
    return max(wanted.items(), key=lambda item: (len(item[1]), order(item[0])))


def steps(
    read: Callable[[], dict[str, dict[str, Any]]],
    available: Sequence[str],
    chosen: Sequence[Proof],
    judge: Callable[[str, list[Proof]], None],
) -> Iterator[tuple[str, list[Proof]]]:
    """Every step, judged before it is given; ``judge`` records what ``read`` gives afterwards.

    A release that cannot be judged is left out from then on.
    """
    left = list(available)
    while True:
        following = step(read(), left, chosen)
        if following is None:
            return
        release, proofs = following
        judge(release, proofs)
        states = read().get(release, {"verdicts": {}})
        if any(state_of(states, proof) == "-" for proof in proofs):
            left.remove(release)
        yield following
