"""``dsmoe defects --against``: a proof says fixed with the patch, and lives without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from support.without_patch import copied, take_out

from dsmoe.common.places import base_name
from dsmoe.defects import listing
from dsmoe.patchset.base import load_bases
from dsmoe.patchset.series import load_series

LONG = ("experts/copies",)  # one of them; the others are slow
#: Patches that do not work without the one that a proof takes out, so they come out with it.
DEPENDENT = {"launcher/lifeline": ["launcher-visible-devices", "launcher-lean-on-hosts"]}
PROOFS = {proof.name: proof for proof in listing.proofs()}
MARKS = dict.fromkeys(LONG, pytest.mark.long)
ALL = [pytest.param(name, marks=MARKS.get(name, pytest.mark.slow)) for name in PROOFS]


def judged(tree: Path, name: str) -> dict[str, Any]:
    """The verdict of one proof on the DeepSpeed in ``tree``."""
    paths = [p for p in os.environ["PYTHONPATH"].split(os.pathsep) if "DeepSpeed" not in p]
    run = subprocess.run(
        [sys.executable, "-m", "dsmoe", "defects", "--against", sys.executable, "--json"]
        + ["--only", name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), *paths])},
        capture_output=True,
        text=True,
    )
    assert run.stderr == "", run.stderr
    return json.loads(run.stdout)["verdicts"][name]


@pytest.mark.parametrize("name", ALL)
def test_fixed_with_the_patch_and_alive_without(name: str, checkout: Path, tmp_path: Path) -> None:
    found = judged(checkout, name)
    assert found["state"] == "fixed", found
    series = load_series(load_bases(name=base_name())[0])
    wanted = listing.patches()[PROOFS[name].number] + DEPENDENT.get(name, [])
    tree = copied(checkout, tmp_path)
    for patch in reversed(series.patches):
        if patch.name[: -len(".patch")] in wanted:
            take_out(tree, patch, series)
    found = judged(tree, name)
    assert found["state"] == "lives", found


def test_a_python_without_deepspeed_is_one_line(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "dsmoe", "defects", "--against", str(tmp_path / "none")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 8 and run.stderr.count("\n") == 1, run.stderr
    assert "found no such program" in run.stderr
