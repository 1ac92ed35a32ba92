"""Every setting of the option list runs on GPUs, two by two: to a finished row, or not at all.

A run ends as "finished", with every figure, or is refused before anything starts. Everything else,
a run that is lost after its last iteration first of all, is a failure here.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import ROOT

from dsmoe.benchmark.cases.choice import chosen_cases
from dsmoe.commands.options import wanted_of
from dsmoe.commands.run import make_parser
from dsmoe.common.errors import UsageError

pytestmark = pytest.mark.gpu

SETTINGS: dict[str, list[list[str]]] = {
    "moe layer": [["--moe-layer", name] for name in ("index", "einsum", "deepspeed")],
    "ZeRO": [["--zero-stage", stage] for stage in ("0", "1", "2")],
    "precision": [["--precision", name] for name in ("fp32", "fp16", "bf16")],
    "optimizer": [
        ["--optimizer", "adamw"],
        ["--optimizer", "sgd"],
        ["--adafactor-mode", "sharded"],
        ["--adafactor-mode", "artifact"],
    ],
    "remat": [["--remat"], ["--no-remat"]],
    "compiled": [["--compiled"], ["--no-compiled"]],
    "flat gradients": [["--flat-gradients"], ["--no-flat-gradients"]],
    "graph": [["--cuda-graph"], ["--no-cuda-graph"]],
}
AT_ONCE = 4  # runs on one GPU at a time; starting them takes most of the time


def words(row: tuple[int, ...]) -> list[str]:
    """The options of a choice of values."""
    return [word for values, at in zip(SETTINGS.values(), row) for word in values[at]]


def goes_together(row: tuple[int, ...]) -> bool:
    """Whether the choice is a case at all; what is not must be refused before the start."""
    options = make_parser("dsmoe run").parse_args(["1", "--suite", "smoke", *words(row)])
    try:
        chosen_cases(wanted_of(options), "cuda")
    except UsageError:
        return False
    return True


def pairwise() -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Choices that go together, in which every pair that ever does stands at least once; and a
    sample of those that do not."""
    every = list(itertools.product(*(range(len(values)) for values in SETTINGS.values())))
    good = [row for row in every if goes_together(row)]
    missing = set().union(*map(covered, good))
    rows = []
    while missing:
        rows.append(max(good, key=lambda row: len(covered(row) & missing)))
        missing -= covered(rows[-1])
    bad = [row for row in every if row not in set(good)]
    return rows, bad[:: len(bad) // 8]


def covered(row: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
    return {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}


def ending(options: list[str], folder: Path, processes: int) -> str:
    """ "finished", "refused", or what else became of the run."""
    command = [sys.executable, "-m", "dsmoe", "run", str(processes), "--suite", "smoke"]
    command += ["--steps", "2", "--warmup", "1", "--output", str(folder), *options]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300
    )
    records = folder / "results_e2e.jsonl"
    if not records.is_file():
        one_line = len(done.stderr.strip().splitlines()) == 1
        if done.returncode == 2 and one_line and done.stderr.startswith("error: "):
            return "refused"
        return f"exit code {done.returncode}: {done.stderr[-300:]}"
    record = json.loads(records.read_text())
    whole = record["held_out_loss"] is not None and record["expert_load"]
    if done.returncode == 0 and record["status"] == "ok" and whole:
        return "finished"
    return f"{record['status']}: {record['reason'] or record['evaluation_error']}"


@pytest.mark.parametrize("processes", [1, 2])
def test_every_pair_of_settings_finishes_or_is_refused(
    processes: int, gpus: int, tmp_path: Path, checkout: Path
) -> None:
    if gpus < processes:
        pytest.skip(f"{processes} GPUs are needed, and {gpus} are here")
    good, bad = pairwise()
    with ThreadPoolExecutor(AT_ONCE if processes == 1 else 2) as pool:
        ends = list(
            pool.map(
                lambda pair: ending(words(pair[1]), tmp_path / str(pair[0]), processes),
                enumerate([*good, *bad]),
            )
        )
    expected = ["finished"] * len(good) + ["refused"] * len(bad)
    wrong = [
        f"{' '.join(words(row))}: {end}, expected {right}"
        for row, end, right in zip([*good, *bad], ends, expected)
        if end != right
    ]
    assert not wrong, "\n".join(wrong)
