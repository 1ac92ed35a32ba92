"""Which training processes start compiling Hopper kernels, and for which settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.run.folder import CASE, write_json
from dsmoe.benchmark.train import kernels_ahead

TUNED = find_case("tuned", 1)


def started(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, local_rank: int = 0
) -> list[tuple[str, int, bool]]:
    asked: list[tuple[str, int, bool]] = []
    worker = SimpleNamespace(start=lambda *given: asked.append(given))
    monkeypatch.setattr(kernels_ahead, "_by_path", lambda name: worker)
    write_json(folder / CASE, {"case": case.to_dict()})
    kernels_ahead.start_kernels(folder, local_rank)
    return asked


def test_one_process_a_host_starts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 768 wide, 16 heads; experts are all on one process, whose rows are packed
    assert started(TUNED, tmp_path, monkeypatch) == [("bf16", 48, True)]
    assert started(TUNED, tmp_path, monkeypatch, local_rank=1) == []


@pytest.mark.parametrize("value, starts", [("", 1), ("all", 1), ("cublas", 0), ("torch", 0)])
def test_the_choice_of_kernels_is_kept(
    value: str, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSMOE_KERNELS", value)
    assert len(started(TUNED, tmp_path, monkeypatch)) == starts


def test_a_case_without_these_kernels_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in (find_case("smoke", 1), dataclasses.replace(TUNED, precision="fp32")):
        assert started(other, tmp_path, monkeypatch) == []


def test_a_folder_that_cannot_be_read_is_left_to_the_training(tmp_path: Path) -> None:
    kernels_ahead.start_kernels(tmp_path / "absent", 0)
