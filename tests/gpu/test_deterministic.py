"""With ``--deterministic`` two trainings on one card give the same bits, also over a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ROOT

pytestmark = pytest.mark.gpu

SETTINGS = {
    "as the artifact": ["--precision", "fp16", "--remat"],
    "fastest": ["--precision", "bf16", "--no-remat", "--compiled", "--flat-gradients"],
    "fastest, as a graph": ["--precision", "bf16", "--no-remat", "--compiled", "--cuda-graph"],
}


def train(folder: Path, steps: int, *words: str) -> None:
    command = [sys.executable, "-m", "dsmoe", "train", "1", "--suite", "smoke", "--deterministic"]
    kept = ["--load" if folder.exists() else "--save", str(folder)]
    done = subprocess.run(
        [*command, "--steps", str(steps), *words, *kept],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def losses(folder: Path) -> dict[int, float]:
    """Iteration -> loss, over all runs that wrote to ``folder``."""
    lines = (
        line
        for path in sorted(folder.glob("runs/*/iterations.jsonl"))
        for line in path.read_text().splitlines()
    )
    return {entry["iteration"]: entry["loss"] for entry in map(json.loads, lines)}


def tensors(found: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint's file, by the path to it."""
    if isinstance(found, torch.Tensor):
        return {name: found}
    if isinstance(found, dict):
        pairs = list(found.items())
    elif isinstance(found, (list, tuple)):
        pairs = list(enumerate(found))
    else:
        return {}
    return {key: t for at, part in pairs for key, t in tensors(part, f"{name}/{at}").items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer states of the last checkpoint of ``folder``."""
    tag = (folder / "latest").read_text().strip()
    return {
        key: tensor
        for file in sorted((folder / tag).glob("*_states.pt"))
        for key, tensor in tensors(
            torch.load(file, map_location="cpu", weights_only=False), file.name
        ).items()
    }


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_trainings_and_a_resumed_one_have_the_same_bits(
    setting: str, gpus: int, tmp_path: Path, checkout: Path
) -> None:
    if not gpus:
        pytest.skip("a GPU is needed, and none is here")
    words = SETTINGS[setting]
    one, two, parts = (tmp_path / name for name in ("one", "two", "parts"))
    train(one, 6, *words)
    train(two, 6, *words)
    train(parts, 3, *words)
    train(parts, 6, *words)
    assert sorted(losses(one)) == [1, 2, 3, 4, 5, 6]
    assert losses(one) == losses(two) == losses(parts)
    expected = weights(one)
    assert expected
    for other in (two, parts):
        found = weights(other)
        assert found.keys() == expected.keys()
        different = [key for key in found if not torch.equal(found[key], expected[key])]
        assert not different, f"{len(different)} of {len(found)}: {different[:5]}"
