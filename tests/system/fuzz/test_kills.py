"""A few of the kills that ``make kills`` does by the hundred."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.fuzz import kept_kills, kills
from support.patch_fixtures import make_template


@pytest.mark.long  # tests/system/patchset/test_kill.py kills it between any two lines
def test_no_kill_of_the_applier_ends_badly(tmp_path: Path) -> None:
    template = make_template(tmp_path)
    (tmp_path / "p").mkdir()
    assert set(kills.patch_kills(template, tmp_path / "p", 4, random.Random(1))) == {""}


def test_no_kill_of_append_ends_badly(tmp_path: Path) -> None:
    assert set(kills.append_kills(tmp_path, 8, random.Random(2))) == {""}


@pytest.mark.slow
def test_no_kill_of_a_run_ends_badly(checkout: Path, tmp_path: Path) -> None:
    assert list(kept_kills.run_kills(tmp_path, 3, random.Random(4))) == ["", "", ""]


@pytest.mark.long
def test_no_ctrl_c_ends_badly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "COMMANDS", ("plot none", "--version"))
    assert set(kills.interrupts(tmp_path, 6, random.Random(3))) <= {"", kills.BEFORE}
