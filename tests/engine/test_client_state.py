"""client_state: plain kinds load as they were; the rest is refused when it is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.client_probes import Mode
from support.ranks import run_ranks


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("experts", [1, 4])
def test_plain_kinds_come_back(stage: int, experts: int, tmp_path: Path) -> None:
    scenario = {"stage": stage, "model": {"num_experts": experts}}
    assert run_ranks(1, "client_round_trip", scenario, str(tmp_path)) == [[]]


@pytest.mark.parametrize("experts", [1, 4])
def test_what_could_not_be_loaded_is_refused_by_name(experts: int, tmp_path: Path) -> None:
    """Before a file is written, on all processes, naming the key and the class."""
    scenario = {"stage": 2, "model": {"num_experts": experts}}
    first, second = run_ranks(2, "client_errors", scenario, str(tmp_path))
    # Python 3.11.0 to 3.11.3 pickle a member of an enumeration as getattr(class, name)
    by_getattr = Mode.FAST.__reduce_ex__(2)[0] is getattr
    for key, name in (
        ("mode", "builtins.getattr" if by_getattr else "client_probes.Mode"),
        ("deep", "client_probes.Mine"),
        ("array", "client_probes.Mine"),
        ("function", "cannot be pickled"),
        ("method", "builtins.getattr"),
        ("generator", "numpy.random"),
    ):
        assert first[key].startswith("TypeError") and name in first[key], first[key]
        assert f"client_state[{key!r}]" in first[key]
    for key in ("module", "global_steps"):
        assert first[key].startswith(f"ValueError: client_state has the key {key!r}")
    assert all("of another process" in text for text in second.values())
    assert list(tmp_path.iterdir()) == []
