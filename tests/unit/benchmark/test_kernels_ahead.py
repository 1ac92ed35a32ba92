"""Which training processes start compiling Hopper kernels, and for which settings."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

from dsmoe.benchmark.cases.case import Case
from dsmoe.benchmark.cases.suites import find_case
from dsmoe.benchmark.run.folder import CASE, write_json
from dsmoe.benchmark.train import kernels_ahead

AHEAD = "deepspeed/moe/kernels/ahead.py"
STAND_IN = """
def start(*given):
    with open({asked!r}, "a") as file:
        print(given, file=file)
"""
TUNED = find_case("tuned", 1)


def started(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, local_rank: int = 0
) -> list[tuple[str, int, bool]]:
    """What DeepSpeed's module for it, here a stand-in, was asked to compile."""
    (folder / AHEAD).parent.mkdir(parents=True, exist_ok=True)
    (folder / AHEAD).write_text(STAND_IN.format(asked=str(folder / "asked")))
    monkeypatch.syspath_prepend(str(folder))
    write_json(folder / CASE, {"case": case.to_dict()})
    (folder / "asked").write_text("")
    kernels_ahead.start_kernels(folder, local_rank)
    return [ast.literal_eval(line) for line in (folder / "asked").read_text().splitlines()]


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
