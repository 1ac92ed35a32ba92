"""Bisecting: which release is judged next, and what is said of the one that fixed a defect."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dsmoe.common.errors import EnvironmentProblem
from dsmoe.defects import narrow, releases
from dsmoe.defects.listing import Proof

PROOF = Proof("kind/one", 1, "one", 1)
OTHER = Proof("kind/two", 2, "two", 1)
ALL = releases.PUBLISHED


def found_by(first_good: dict[str, str], *judged: str) -> dict[str, dict[str, Any]]:
    """What is known of releases where every proof is fixed from a release on."""

    def state(name: str, release: str) -> str:
        good = releases.order(release) >= releases.order(first_good[name])
        return "fixed" if good else "lives"

    return {
        r: {"verdicts": {name: {"state": state(name, r)} for name in first_good}} for r in judged
    }


def bisected(first_good: dict[str, str], broken: tuple[str, ...] = ()) -> Any:
    """The releases judged by ``narrow.steps``, and what is known in the end."""
    known = found_by(first_good, ALL[0], ALL[-1])

    def judge(release: str, proofs: list[Proof]) -> None:
        if release in broken:
            return
        names = {proof.name: first_good[proof.name] for proof in proofs}
        new = found_by(names, release)[release]["verdicts"]
        known.setdefault(release, {"verdicts": {}})["verdicts"].update(new)

    def read() -> dict[str, dict[str, Any]]:
        return {name: known[name] for name in sorted(known, key=releases.order)}

    chosen = [p for p in (PROOF, OTHER) if p.name in first_good]
    judged = [release for release, _ in narrow.steps(read, ALL, chosen, judge)]
    return judged, read()


@pytest.mark.parametrize("fixed", [ALL[1], "0.9.0", "0.14.2", ALL[-1]])
def test_the_release_is_found_in_the_logarithm_of_the_releases(fixed: str) -> None:
    judged, known = bisected({"kind/one": fixed})
    assert releases.since(known, PROOF) == f"fixed since {fixed}"
    assert len(judged) <= math.ceil(math.log2(len(ALL)))


def test_two_proofs_share_releases() -> None:
    judged, known = bisected({"kind/one": "0.12.0", "kind/two": "0.12.0"})
    assert len(judged) == len(set(judged)) <= 7
    assert releases.since(known, OTHER) == "fixed since 0.12.0"


def test_what_cannot_be_judged_is_left_out_and_said() -> None:
    _, known = bisected({"kind/one": "0.12.3"}, broken=("0.12.2", "0.12.3"))
    assert releases.since(known, PROOF) == "fixed after 0.12.1, by 0.12.4"


def test_nothing_to_find_where_the_newest_has_the_defect() -> None:
    known = {ALL[3]: {"verdicts": {"kind/one": {"state": "lives"}}}}
    assert narrow.step(known, ALL, [PROOF]) is None
    assert releases.since(known, PROOF) == f"lives in {ALL[3]}"


def test_environments_are_named_by_releases(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="found no environment"):
        narrow.environments(str(tmp_path))
    for name in ("0.12.6", "something"):
        python = tmp_path / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
    assert list(narrow.environments(str(tmp_path))) == ["0.12.6"]
