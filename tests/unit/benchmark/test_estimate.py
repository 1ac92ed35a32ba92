"""The process that makes a plan has a limit of seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import hanging

from dsmoe.benchmark.cases.choice import WantedCases, chosen_cases
from dsmoe.benchmark.plan import estimate
from dsmoe.common.errors import EnvironmentProblem


def test_a_plan_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging.package(tmp_path, "torch", monkeypatch)
    monkeypatch.setattr(estimate, "SIMULATION_SECONDS", 0.5)
    [case] = chosen_cases(WantedCases(1, "smoke"), "cpu")
    with pytest.raises(EnvironmentProblem, match=r"the plan was not made within 0\.5 s"):
        estimate.estimate(case, "cpu", tmp_path)
