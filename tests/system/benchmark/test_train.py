"""``dsmoe train``: a training that is stopped and goes on is the training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT, patched
from support.benchmark_runs import command

# Draws in every layer, so that a random state that is lost shows in the losses.
RANDOM = {"dropout": 0.2, "second_expert_policy": "random"}
PLAIN = {"second_expert_policy": "all", "capacity_factor": 8.0, "aux_loss_coefficient": 0.0}


@pytest.fixture(scope="module", autouse=True)
def checkout() -> None:
    patched.importable()


def start(folder: Path, *options: Any, changes: dict[str, Any]) -> subprocess.Popen[str]:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("".join(f"All work and no play, {n} times.\n" for n in range(400)))
    words = [*map(str, options), "--data", str(text)]
    return subprocess.Popen(
        [*command("train"), json.dumps(changes), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train(folder: Path, *options: Any, changes: dict[str, Any]) -> str:
    process = start(folder, *options, changes=changes)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    return said


def losses(folder: Path) -> dict[int, float]:
    """Iteration -> loss, over all runs that wrote to ``folder``."""
    found = {}
    for path in sorted(folder.glob("runs/*/iterations.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            found[entry["iteration"]] = entry["loss"]
    return found


def as_killed(whole: Path, parts: Path, after: int) -> Path:
    """A copy of ``whole``, twice as long a training, without what came after its middle."""
    shutil.copytree(whole, parts, ignore=shutil.ignore_patterns("runs", f"step{2 * after}"))
    (parts / "latest").write_text(f"step{after}")
    return parts


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of four iterations: its checkpoints in kept, its curves in board."""
    folder = tmp_path_factory.mktemp("whole")
    options = ("--every", 2, "--save", folder / "kept", "--tensorboard", folder / "board")
    train(folder, 1, "--steps", 4, *options, changes=PLAIN)
    return folder


@pytest.mark.long
def test_a_resumed_deterministic_training_has_the_bits_of_the_whole(tmp_path: Path) -> None:
    """From the checkpoint in its middle, as a kill would have left it. Draws in every layer."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    six = (1, "--deterministic", "--steps", 6)
    train(tmp_path, *six, "--every", 3, "--save", whole, changes=RANDOM)
    as_killed(whole, parts, after=3)
    train(tmp_path, *six, "--load", parts, changes=RANDOM)
    assert losses(parts) == {step: loss for step, loss in losses(whole).items() if step > 3}
    assert sorted(losses(parts)) == [4, 5, 6]
    first, second = (
        torch.load(folder / "step6" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
        for folder in (whole, parts)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first.keys() == second.keys()


@pytest.mark.long
def test_it_goes_on_with_another_number_of_processes(whole: Path, tmp_path: Path) -> None:
    """From the checkpoint in its middle, as a kill would have left it.

    Without random draws; both have every token's experts, so that no group matters.
    """
    parts = as_killed(whole / "kept", tmp_path / "parts", after=2)
    train(tmp_path, 2, "--steps", 4, "--load", parts, changes=PLAIN)
    rest = {step: loss for step, loss in losses(whole / "kept").items() if step > 2}
    assert sorted(rest) == [3, 4]
    assert losses(parts) == pytest.approx(rest, rel=1e-4)


@pytest.mark.long
def test_a_state_under_the_name_of_another_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = as_killed(whole / "kept", tmp_path / "renamed", after=2)
    (folder / "step2").rename(folder / "step1")
    (folder / "latest").write_text("step1")
    options = ("1", "--load", folder, "--steps", "2")
    process = start(tmp_path, *options, changes=PLAIN)
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 25 and "Traceback" not in said
    assert "found the state after" in said.splitlines()[-1]


def test_sigterm_saves_and_ends_with_its_code(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    process = start(tmp_path, 1, "--steps", 100000, "--save", kept, changes=PLAIN)
    deadline = time.monotonic() + 300
    while len(losses(kept)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    second = start(tmp_path, 1, "--save", kept, changes=PLAIN)
    assert "another dsmoe train is at work" in second.communicate(timeout=100)[0]
    assert second.returncode == 14
    os.kill(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 143, said
    step = max(losses(kept))
    assert f"checkpoint of iteration {step} in {kept}" in said
    assert (kept / "latest").read_text().strip() == f"step{step}"
    refused = start(tmp_path, 1, "--save", kept, changes=PLAIN)
    assert "--load" in refused.communicate(timeout=100)[0] and refused.returncode == 2


def test_curves_have_one_axis(whole: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(whole / "board"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    expected = {"loss/train", "learning_rate", "tokens_per_second", "dropped_share/layer_0"}
    assert expected | {"expert_load/layer_0/expert_1"} <= tags
    for tag in expected:
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4], tag


def small_text(folder: Path) -> Path:
    """``folder`` with twelve files, enough for a small training and its held-out sample."""
    folder.mkdir()
    for name in range(12):
        lines = (f"{name} for {n} times.\n" for n in range(300))
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


def dsmoe(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """``dsmoe WORDS`` run in ``folder``, with the real suites."""
    return subprocess.run(
        [sys.executable, "-m", "dsmoe", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_evaluate_has_the_loss_of_the_trainings_own_sample(tmp_path: Path) -> None:
    """By default: the held-out text of the training, the same sequences in the same batches."""
    data = small_text(tmp_path / "text")
    kept = tmp_path / "kept"

    def said(*words: object) -> str:
        done = dsmoe(tmp_path, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said("train", 2, "--steps", 2, "--data", data, "--save", kept)
    [outcome] = kept.glob("runs/*/outcome.json")
    found = json.loads(said("evaluate", kept, "--json"))
    loss = json.loads(outcome.read_text())["held_out_loss"]
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["text"] == f"held out of {data}, as in training"
    # another sample is another figure
    every = json.loads(said("evaluate", kept, "--windows", 3, "--json"))
    assert every["windows"] == 3 and abs(every["loss"] - loss) > 1e-4 * loss


@pytest.mark.long
def test_weights_without_a_finite_loss_are_no_success(tmp_path: Path) -> None:
    """The last iteration's own loss is from before its update; the held-out loss is from after."""
    data = small_text(tmp_path / "text")
    words = ("--data", data, "--save", tmp_path / "kept", "--steps", 1, "--learning-rate", 1e30)
    done = dsmoe(tmp_path, "train", 1, *words)
    assert done.returncode == 25, done.stdout
    assert "the held-out loss is nan after iteration 1" in done.stderr


def test_too_little_text_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Too little.")
    short = start(tmp_path, 1, "--save", tmp_path / "other", changes=PLAIN)
    said = short.communicate(timeout=100)[0]
    assert short.returncode == 9 and "tokens" in said, said
    assert not (tmp_path / "other" / "runs").exists()


@pytest.mark.slow
def test_a_pipeline_goes_on_where_it_was(tmp_path: Path) -> None:
    """Two stages of a process each; random draws too, and no other kind of run loads it."""
    piped = ["2", "--pipeline", "2", "--micro-batches", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(tmp_path, *piped, "--save", whole, "--steps", 4, changes=RANDOM)
    train(tmp_path, *piped, "--save", parts, "--steps", 2, changes=RANDOM)
    train(tmp_path, *piped, "--load", parts, "--steps", 4, changes=RANDOM)
    assert losses(parts) == losses(whole) and len(losses(whole)) == 4
    process = start(tmp_path, "2", "--load", parts, "--steps", 5, changes=RANDOM)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 2 and "found a checkpoint of 2 pipeline stages" in said, said
