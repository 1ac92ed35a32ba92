"""What of a checkpoint is changed, swapped or missing is found before anything is loaded."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.forked import run_forked
from support.fuzz.kept_kills import save_kills
from support.ranks import run_ranks

SCENARIO = {"model": {"num_experts": 4}, "stage": 2, "expert_parallel": 2, "optimizer": "AdamW"}
#: Saves that are killed; DSMOE_TEST_KILLS sets another number.
KILLS = int(os.environ.get("DSMOE_TEST_KILLS", "5"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run_ranks(2, "train_and_save", SCENARIO, str(folder), ["first", "second"])
    return folder


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return run_forked(folder / "zero_to_fp32.py", *(arguments or (".", "fp32.bin")))


def _results(folder: Path, changes: list[Any], processes: int = 2, **scenario: Any) -> list[str]:
    """What all processes say after each change."""
    asked = {**SCENARIO, **scenario}
    results = run_ranks(processes, "load_results", asked, str(folder), changes)
    for of_all in zip(*results):
        assert all(one[0] == of_all[0][0] for one in of_all), of_all
    return [one[0] for one in results[0]]


def test_the_manifest_lists_every_file(saved: Path) -> None:
    """sha256sum, which is not ours, agrees with it."""
    files = {path.name for path in (saved / "second").iterdir()}
    assert len(files) == 4 + 2 + 1 + 2 + 1, files  # experts, their optimizer, rest, ZeRO, manifest
    run = subprocess.run(
        ["sha256sum", "--check", "--strict", "manifest.sha256"],
        cwd=saved / "second",
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0 and run.stdout.count(": OK") == len(files) - 1, run
    assert {path.name for path in saved.iterdir()} >= {"first", "second", "latest"}
    assert not list(saved.glob("*.saving-*")) and not list(saved.glob("*.former"))


def test_every_flip_of_a_byte_is_found(saved: Path) -> None:
    """The ends of each file, and a position between them."""
    draw = random.Random(1)
    changes: list[Any] = []
    for path in sorted((saved / "second").iterdir()):
        size = path.stat().st_size
        for position in (0, size - 1, draw.randrange(size)):
            changes.append([str(path), position, 1 << draw.randrange(8)])
    for change, said in zip(changes, _results(saved, changes)):
        assert said.startswith("RuntimeError: checkpoint file"), (change, said)
        assert change[0] in said and "is cut short or damaged" in said, (change, said)
        assert "load the tag 'first'" in said and "\n" not in said, (change, said)
    assert _results(saved, [[str(saved / "first" / "manifest.sha256"), 0, 0]]) == [
        "loaded True True"
    ]


def test_every_missing_and_every_swapped_file_is_found(saved: Path) -> None:
    files = sorted(p for p in (saved / "second").iterdir() if p.name != "manifest.sha256")
    for path, said in zip(files, _results(saved, [[str(path), None] for path in files])):
        found = path.name in said and "missing" in said
        assert found or f"has no {path.name}" in said, said
        assert "load the tag 'first'" in said, said
    experts = [str(path) for path in files if path.name.startswith("expert_")]
    (said,) = _results(saved, [[experts[0], experts[1]]])
    assert f"{experts[0]} holds {Path(experts[1]).name}" in said and "(and 1 more)" in said


def test_another_number_of_processes_finds_it_too(saved: Path) -> None:
    victim = str(saved / "second" / "zero_pp_rank_1_mp_rank_00_optim_states.pt")
    change = [[victim, 3000, 4]]
    (said,) = _results(saved, change, 1, expert_parallel=1)
    assert victim in said and "load_module_only=True" in said


def test_without_a_manifest_it_loads_with_a_line(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "second" / "manifest.sha256").unlink()
    said = run_ranks(2, "load_result", SCENARIO, str(tmp_path / "copy"), {})
    assert [one[0] for one in said] == ["loaded True True"] * 2
    assert [sum("no file is verified" in text for text in one) for one in said] == [1, 0]


def test_verifying_can_be_switched_off(saved: Path, tmp_path: Path) -> None:
    victim = str(saved / "second" / "mp_rank_00_model_states.pt")
    off = {"config": {"checkpoint": {"verify": False}}}
    position = Path(victim).read_bytes().rindex(b"PK") - 40  # padding of the archive
    assert "damaged" in _results(saved, [[victim, position, 1]])[0]
    missing = str(saved / "second" / "expert_2_mp_rank_00_model_states.pt")
    run = _results(
        saved, [[str(saved / "second" / "manifest.sha256"), 0, 0], [missing, None]], **off
    )
    assert run[0] == "loaded True True" and "is missing" in run[1]
    victim = str(saved / "second" / "expp_rank_1_mp_rank_00_optim_states.pt")
    assert _results(saved, [[victim, 200, 1]], **off) != _results(saved, [[victim, 200, 1]])


def test_the_script_verifies(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    victim = tmp_path / "copy" / "second" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    data = bytearray(victim.read_bytes())
    data[data.rindex(b"PK") // 2] ^= 1
    victim.write_bytes(data)
    run = run_script(tmp_path / "copy")
    assert run.returncode == 1 and run.stderr.count("\n") == 1, run.stderr
    assert victim.name in run.stderr and "load the tag 'first'" in run.stderr
    assert run_script(tmp_path / "copy", ".", "x", "--tag", "first").returncode == 0
    other = run_script(tmp_path / "copy", ".", "x", "--no-verify")
    assert "SHA-256" not in other.stderr


def test_the_users_own_files_stay_in_a_tag_that_is_saved_again(tmp_path: Path) -> None:
    scenario = {**SCENARIO, "stage": 2}
    run_ranks(2, "save_once", scenario, str(tmp_path), {"tag": "one"})
    (tmp_path / "one" / "notes.txt").write_text("mine")
    run_ranks(2, "save_once", scenario, str(tmp_path), {"tag": "one"})
    assert (tmp_path / "one" / "notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"one", "latest", "zero_to_fp32.py"}


def test_a_kill_leaves_the_new_checkpoint_or_the_one_before(tmp_path: Path) -> None:
    dice = random.Random(int(os.environ.get("DSMOE_TEST_SEED", "2")))
    assert list(save_kills(tmp_path, KILLS, dice)) == [""] * KILLS
