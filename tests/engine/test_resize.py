"""A checkpoint of ZeRO-1/2 loads at any number of processes and any expert parallel size.

Independent of what loads it: the steps that follow equal the uninterrupted ones on the same global
batch (1e-5, sums in another order), and saved again at the first layout it is the same bit by bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.ranks import run_ranks
from support.resize_probes import same_files

HALF = 2
# 65 words and 4 layers of odd sizes: no group is a multiple of the alignment
ODD = {"vocab_size": 65, "ffn_multiplier": 3}
MOMENTUM = {"optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}}


def _adafactor(**params: Any) -> dict[str, Any]:
    settings = {"lr": 1e-1, "relative_step": False, **params}
    return {"optimizer": {"type": "Adafactor", "params": settings}}


def _round_robin(stage: int) -> dict[str, Any]:
    zero = {"stage": stage, "round_robin_gradients": True, "contiguous_gradients": True}
    return {"zero_optimization": {**zero, "reduce_bucket_size": 3000, "overlap_comm": False}}


COMMON = {"steps": 4, "model": ODD}
SCENARIOS = [
    {**COMMON, "stage": 2, "optimizer": "AdamW"},
    {**COMMON, "stage": 1, "optimizer": "Adafactor", "config": _adafactor(beta1=0.9)},
    {**COMMON, "stage": 2, "config": MOMENTUM, "flat": True},
    {**COMMON, "stage": 2, "optimizer": "AdamW", "config": _round_robin(2)},
    {**COMMON, "stage": 1, "optimizer": "AdamW", "flat": True, "flip_groups": True},
    {**COMMON, "stage": 2, "optimizer": "Adafactor", "config": _round_robin(2)},
]
OWN = {**ODD, "moe_implementation": "deepspeed", "second_expert_policy": "sampling"}


def _at(scenarios: list[dict], expert_parallel: int) -> list[dict]:
    return [{**s, "expert_parallel": expert_parallel} for s in scenarios]


def _check(scenarios: list[dict], folder: Path, start: tuple, others: list[tuple]) -> None:
    processes, size = start
    first = str(folder / "first")
    expected = run_ranks(processes, "save_at", _at(scenarios, size), first, HALF)[0]
    folders = [f"{first}/{i}" for i in range(len(scenarios))]
    for there, other_size in others:
        again = str(folder / f"{there}-{other_size}")
        asked = _at(scenarios, other_size)
        for results in run_ranks(there, "resume_at", asked, folders, HALF, again):
            for scenario, one, other in zip(asked, expected, results):
                assert other["losses"] == pytest.approx(one["losses"], rel=1e-5), scenario
        back = [f"{again}/{i}" for i in range(len(scenarios))]
        last = str(folder / f"{there}-{other_size}-back")
        at_once = [{**scenario, "steps": HALF} for scenario in _at(scenarios, size)]
        run_ranks(processes, "resume_at", at_once, back, HALF, last)
        for i, one in enumerate(folders):
            assert same_files(one, f"{last}/{i}") == [], (asked[i], there, other_size)


# Each setting meets one of the two changes of layout, and in test-all both.
@pytest.mark.long
@pytest.mark.parametrize("which", [(1, 2, 3), pytest.param((0, 4, 5), marks=pytest.mark.slow)])
def test_from_three_processes(which: tuple[int, ...], tmp_path: Path) -> None:
    """To fewer and more, of which the numbers of elements divide otherwise."""
    _check([SCENARIOS[i] for i in which], tmp_path, (3, 1), [(1, 1), (4, 1)])


@pytest.mark.long
@pytest.mark.parametrize("which", [(0, 4, 5), pytest.param((1, 2, 3), marks=pytest.mark.slow)])
def test_to_another_expert_parallel_size(which: tuple[int, ...], tmp_path: Path) -> None:
    """Experts are told apart and laid out anew."""
    _check([SCENARIOS[i] for i in which], tmp_path, (4, 2), [(4, 4), (3, 1)])


@pytest.mark.parametrize(
    ("scenario", "model"),
    [
        pytest.param(SCENARIOS[3], OWN, id="AdamW-deepspeed"),
        pytest.param(SCENARIOS[5], ODD, id="Adafactor-stacked"),
        pytest.param(SCENARIOS[3], ODD, id="AdamW-stacked", marks=pytest.mark.slow),
        pytest.param(SCENARIOS[5], OWN, id="Adafactor-deepspeed", marks=pytest.mark.slow),
    ],
)
def test_each_part_finds_its_parameter(scenario: dict, model: dict, tmp_path: Path) -> None:
    """State that was set to a function of the weights is that of the weights that are loaded."""
    scenario = {**scenario, "model": model}
    for (start, size), (there, other) in (
        ((4, 2), (4, 4)),
        ((4, 4), (2, 1)),
        ((3, 1), (4, 2)),
    ):
        folder = str(tmp_path / f"{start}-{size}")
        run_ranks(start, "save_stamped", {**scenario, "expert_parallel": size}, folder)
        for apart in run_ranks(
            there, "stamps_apart", {**scenario, "expert_parallel": other}, folder
        ):
            assert max(apart) < 1e-7, (start, size, there, other, apart)


def test_the_padding_is_left_out(tmp_path: Path) -> None:
    """Files hold the parameters' elements and no padding, also where it fills a partition."""
    for words in (65, 66, 67):  # of these at least one has more padding than one a process
        model = {**ODD, "vocab_size": words, "num_experts": 1}
        scenario = {**SCENARIOS[0], "model": model}
        (whole,) = run_ranks(1, "paddings", scenario)
        lengths = run_ranks(3, "paddings", scenario)
        assert [sum(each) for each in zip(*lengths)] == whole, words


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    """Groups of other parameters are named, not copied over one another."""
    folder = str(tmp_path)
    run_ranks(2, "save_at", [SCENARIOS[4]], folder, HALF)
    said = run_ranks(1, "resize_error", {**SCENARIOS[4], "flip_groups": False}, f"{folder}/0")
    assert "group 0 of the checkpoint's optimizer state lacks" in said[0]


def test_without_zero_another_expert_parallel_size_is_refused(tmp_path: Path) -> None:
    """Every expert parallel rank saved its own experts' state, whole."""
    scenario = {**SCENARIOS[0], "stage": 0, "expert_parallel": 2}
    run_ranks(2, "save_at", [scenario], str(tmp_path), HALF)
    asked = {**scenario, "expert_parallel": 1}
    for said in run_ranks(2, "resize_error", asked, f"{tmp_path}/0"):
        assert "expert parallel size 2, expected 1" in said and "load_module_only" in said
