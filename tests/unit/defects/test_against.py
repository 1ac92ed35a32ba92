"""Judging a DeepSpeed in another Python, which may not answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import hanging

from dsmoe.common.errors import EnvironmentProblem
from dsmoe.defects import against


def test_a_python_to_judge_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging.program(tmp_path, "python-there", hanging.HANGS, monkeypatch)
    monkeypatch.setattr(against, "START_SECONDS", 0.5)
    with pytest.raises(EnvironmentProblem, match=r"python-there gave no answer for 1\.5 s"):
        against.run_proofs(tmp_path / "python-there", [], 1.0, lambda *_: None)
