"""The folder of what dsmoe builds, for a user without a home or with one that is closed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsmoe.common import places
from dsmoe.common.errors import EnvironmentProblem


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "installed", lambda: True)
    for name in ("DSMOE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(EnvironmentProblem, match="export DSMOE_HOME="):
        places.work_folder()
    monkeypatch.setenv("DSMOE_HOME", str(tmp_path))
    assert places.work_folder() == tmp_path


def test_what_to_do_depends_on_whose_folder_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    assert "DSMOE_HOME" in places.another_place(places.checkout_folder())
    assert "DSMOE_HOME" not in places.another_place(Path("/elsewhere"))
