"""Take each patch out of the checkout and see the tests that its header names fail.

A patch whose lines a later one has changed comes out with the later ones of the same file, which
are put back where they still fit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from dsmoe.common.places import base_name
from dsmoe.patchset.authoring.lint import read_fields
from dsmoe.patchset.base import load_bases
from dsmoe.patchset.patch_file import Patch
from dsmoe.patchset.series import load_series

SERIES = load_series(load_bases(name=base_name())[0])
PARTS = ("bin", "deepspeed", "op_builder", "version.txt")

pytestmark = pytest.mark.slow


def git_apply(tree: Path, patch: Patch, *options: str) -> bool:
    """Whether ``git apply`` changed ``tree`` by ``patch``, whole."""
    command = ["git", "apply", "-C1", "--recount", *options, str(patch.path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    # Outside a repository; within one, git apply in a subfolder exits 0 and changes nothing.
    environment["GIT_CEILING_DIRECTORIES"] = str(tree.parent)
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True).returncode == 0


def files(patch: Patch) -> set[str]:
    return {diff.path for diff in patch.files}


def take_out(tree: Path, patch: Patch) -> None:
    if git_apply(tree, patch, "-R"):
        return
    later = SERIES.patches[SERIES.patches.index(patch) + 1 :]
    touched, related = files(patch), []
    for other in later:
        if files(other) & touched:
            related.append(other)
            touched |= files(other)
    popped = [other for other in reversed(related) if git_apply(tree, other, "-R")]
    assert git_apply(tree, patch, "-R"), f"{patch.name} does not come out"
    for other in reversed(popped):
        git_apply(tree, other)


@pytest.mark.parametrize("patch", SERIES.patches, ids=lambda patch: patch.path.name)
def test_its_tests_fail_without_it(patch: Patch, checkout: Path, tmp_path: Path) -> None:
    tree = tmp_path / "DeepSpeed"
    tree.mkdir()
    for part in PARTS:
        source = checkout / part
        copy = shutil.copytree if source.is_dir() else shutil.copy2
        copy(source, tree / part, **({"symlinks": True} if source.is_dir() else {}))
    (tree / "csrc").symlink_to(checkout / "csrc")
    take_out(tree, patch)
    tests = read_fields(patch.header)["X-Test"].split()
    environment = {**os.environ, "DSMOE_DEEPSPEED": str(tree)}
    environment["PYTHONPATH"] = os.pathsep.join(
        part for part in os.environ["PYTHONPATH"].split(os.pathsep) if part != str(checkout)
    )
    for test in tests:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 1, f"{test} without {patch.name}:\n{run.stdout[-2000:]}"
