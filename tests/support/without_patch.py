"""The patched checkout without one of its patches.

A patch whose lines a later one has changed comes out with the later ones of the same file, which
are put back where they still fit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from dsmoe.patchset.patch_file import Patch
from dsmoe.patchset.series import Series

PARTS = ("bin", "deepspeed", "op_builder", "version.txt")


def copied(checkout: Path, folder: Path) -> Path:
    """A copy of the parts of ``checkout`` that a test imports, as a plain tree in ``folder``."""
    tree = folder / "DeepSpeed"
    tree.mkdir()
    for part in PARTS:
        source = checkout / part
        if source.is_dir():
            shutil.copytree(source, tree / part, symlinks=True)
        else:
            shutil.copy2(source, tree / part)
    (tree / "csrc").symlink_to(checkout / "csrc")
    return tree


def git_apply(tree: Path, patch: Patch, *options: str) -> bool:
    """Whether ``git apply`` changed ``tree`` by ``patch``, whole."""
    command = ["git", "apply", "-C1", "--recount", *options, str(patch.path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    # Outside a repository; within one, git apply in a subfolder exits 0 and changes nothing.
    environment["GIT_CEILING_DIRECTORIES"] = str(tree.parent)
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True).returncode == 0


def files(patch: Patch) -> set[str]:
    return {diff.path for diff in patch.files}


def take_out(tree: Path, patch: Patch, series: Series) -> None:
    """Take ``patch`` of the applied ``series`` out of ``tree``."""
    if git_apply(tree, patch, "-R"):
        return
    later = series.patches[series.patches.index(patch) + 1 :]
    touched, related = files(patch), []
    for other in later:
        if files(other) & touched:
            related.append(other)
            touched |= files(other)
    popped = [other for other in reversed(related) if git_apply(tree, other, "-R")]
    assert git_apply(tree, patch, "-R"), f"{patch.name} does not come out"
    for other in reversed(popped):
        git_apply(tree, other)
