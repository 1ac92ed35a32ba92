"""Adding a base is a folder, no code: the steps of docs/reference/bases.md on a made-up release.

The third release is bd3ebd's archive with edits of its own; its ids are read by plain git.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support.patch_project import ROOT, git

NAME = "9.9"
TOPS = ("bin", "deepspeed", "op_builder")
# One file that no patch touches, and a line of one that several do.
EDITS = {
    "version.txt": ("0.5.6", NAME),
    "deepspeed/constants.py": ("from datetime", "# of 9.9\nfrom datetime"),
    "deepspeed/launcher/runner.py": (
        "from .constants import",
        "# a line of 9.9\nfrom .constants import",
    ),
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, without anything built."""
    root = tmp_path / "project"
    root.mkdir()
    for name in ("dsmoe", "bases", "patch", "overlay"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("apply_patch.py", "pyproject.toml"):
        shutil.copy2(ROOT / name, root)
    (root / "build" / "archives").mkdir(parents=True)
    return root


def release(real: Path, folder: Path) -> Path:
    """deepspeed-9.9.tar.gz: ``real`` under another name, with EDITS."""
    subprocess.run(["tar", "-xzf", str(real), "-C", str(folder)], check=True)
    root = folder / "deepspeed-0.5.6"
    for name, (old, new) in EDITS.items():
        text = (root / name).read_bytes()
        assert old.encode() in text
        (root / name).write_bytes(text.replace(old.encode(), new.encode(), 1))
    made = folder / f"deepspeed-{NAME}.tar.gz"
    with tarfile.open(made, "w:gz") as archive:
        archive.add(root, arcname=f"deepspeed-{NAME}")
    return made


def run(project: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(project), **variables}
    for name in ("DSMOE_DEEPSPEED", "DSMOE_ARCHIVE_DIR", "DSMOE_HOME"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_a_folder_is_all_that_a_base_needs(
    project: Path, real_archive: Path, tmp_path: Path
) -> None:
    made = release(real_archive, tmp_path)
    shutil.copy2(real_archive, project / "build" / "archives")
    shutil.copy2(made, project / "build" / "archives")
    folder, place = project / "bases" / NAME, project / "build" / f"DeepSpeed-{NAME}"
    # 1: base.json, with what is known; an empty series and no overlay yet
    folder.mkdir()
    base = json.loads((ROOT / "bases/0.5.4/base.json").read_text())
    base.update(name=NAME, version=NAME, commit="0" * 40, commits=[], trees={}, overlays=[])
    del base["files"], base["release"]["commit_id"]
    base["release"].update(
        version=NAME,
        archive=made.name,
        root=f"deepspeed-{NAME}",
        sha256=hashlib.sha256(made.read_bytes()).hexdigest(),
    )
    (folder / "series").touch()
    (folder / "base.json").write_text(json.dumps(base))
    # 2: the checkout
    run(project, "apply_patch.py", place, "--from-release", "--base", NAME, "--no-apply")
    # 3: the ids that came out, and the overlay
    head = git(place, "rev-parse", "HEAD")
    base["trees"] = {top: git(place, "rev-parse", f"HEAD:{top}") for top in TOPS}
    base.update(commit=head, commits=[{"id": head, "label": "built from our release"}])
    base.update(overlays=["../../overlay"], files="files")
    base["release"]["commit_id"] = head
    (folder / "base.json").write_text(json.dumps(base))
    # 4: the files
    (folder / "files").write_text(git(place, "ls-tree", "-r", "HEAD", *TOPS[1:]) + "\n")
    # 5: the series, from that of bd3ebd
    first = project / "build" / "DeepSpeed"
    run(project, "apply_patch.py", first, "--from-release", "--no-apply")
    said = run(project, "apply_patch.py", place, "--port-from", first).stdout
    assert "shared with bd3ebd" in said

    assert "applied: " in run(project, "apply_patch.py", place).stdout
    found = run(project, "apply_patch.py", place, "--status").stdout  # by identity, not by option
    assert f"base {NAME} (built from our release), HEAD {head}" in found
    patched = (place / "deepspeed/launcher/runner.py").read_text()
    assert "# a line of 9.9" in patched and "hostfile.read(hostfile_path)" in patched
    assert (place / "deepspeed/moe/gshard/routing.py").is_file()
    parts = json.loads(run(project, "-m", "dsmoe", "--version", "--json").stdout)["bases"]
    [ours] = [part for part in parts if part["name"] == NAME]
    assert ours["series"] == ours["locked_series"] and ours["commit"] == head
    # The benchmark takes it by its name.
    words = ["-m", "dsmoe", "run", "1", "--suite", "smoke", "--dry-run"]
    assert str(place / "deepspeed/launcher/lean.py") in run(project, *words, DSMOE_BASE=NAME).stdout
    run(project, "apply_patch.py", place, "--revert")
    assert git(place, "status", "--porcelain") == ""
