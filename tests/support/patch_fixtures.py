"""Fixtures of the patch-set tests: the synthetic project, and the real release archive."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from dsmoe.patchset.base import Base, load_bases
from dsmoe.patchset.sources.archive import fetch_archive
from dsmoe.patchset.sources.release import build_checkout
from support.patch_project import (
    HEADER,
    OVERLAY,
    Project,
    digest,
    git,
    result_files,
    steps,
    write_files,
)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The synthetic upstream and project, made once."""
    return make_template(tmp_path_factory.mktemp("template"))


def make_template(top: Path) -> Project:
    """The synthetic upstream in ``top/upstream`` and its project in ``top/project``."""
    upstream, root = top / "upstream", top / "project"
    upstream.mkdir()
    git(upstream, "init", "-q", "-b", "main", ".")
    commits = []
    for number, files in enumerate([*steps(), result_files()]):
        write_files(upstream, files)
        git(upstream, "add", "-A")
        git(upstream, "commit", "-q", "-m", f"state {number}")
        commits.append(git(upstream, "rev-parse", "HEAD"))
    for folder in ("patch", "overlay", "bases/syn"):
        (root / folder).mkdir(parents=True)
    names = ["one.patch", "two.patch"]
    form = ("-U1", "--full-index", "--binary", "--no-renames")
    for number, name in enumerate(names):
        diff = subprocess.run(
            ["git", "-c", "diff.default.xfuncname=^$^", "-C", str(upstream)]
            + ["-c", "core.quotePath=false", "diff-tree", "-p", "-r", *form, *commits[number:][:2]],
            check=True,
            capture_output=True,
        ).stdout
        (root / "patch" / name).write_bytes(HEADER % number + diff)
    (root / "patch" / "series").write_text("# the series\n" + "\n".join(names) + "\n")
    write_files(root / "overlay", OVERLAY)
    tops = {top: git(upstream, "rev-parse", f"{commits[0]}:{top}") for top in ("lib", "bin")}
    base = {
        "name": "syn",
        "version": "1",
        "commit": commits[0],
        "commits": [{"id": commits[0], "label": "a clone"}],
        "trees": tops,
        "series": "../../patch/series",
        "overlays": ["../../overlay"],
    }
    (root / "bases/syn/base.json").write_text(json.dumps(base))
    git(upstream, "checkout", "-q", "-b", "base", commits[0])
    project = Project(root, upstream)
    lib = git(upstream, "rev-parse", f"{commits[3]}:lib")
    lock = {"base": "syn", "series": digest(project), "trees": {"lib": lib}}
    (root / "bases/syn/result.json").write_text(json.dumps(lock, indent=2) + "\n")
    git(upstream, "config", "uploadpack.allowAnySHA1InWant", "true")
    return project


@pytest.fixture
def project(template: Project, tmp_path: Path) -> Project:
    """A project that the test may change."""
    shutil.copytree(template.root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project", template.upstream)


@pytest.fixture
def checkout(template: Project, tmp_path: Path) -> Path:
    """A pristine clone of the synthetic upstream."""
    return template.clone(tmp_path / "checkout")


@pytest.fixture(scope="session")
def real_base() -> Base:
    """The base bd3ebd of this repository."""
    return next(base for base in load_bases() if base.name == "bd3ebd")


@pytest.fixture(scope="session")
def real_archive(real_base: Base) -> Path:
    """The release archive: from $DSMOE_ARCHIVE_DIR, build/archives/ or by pip; never skipped."""
    return fetch_archive(real_base)


@pytest.fixture(scope="session")
def built_release(
    real_base: Base, real_archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkout built from the release archive; tests copy it, they do not change it."""
    path = tmp_path_factory.mktemp("release") / "DeepSpeed"
    assert build_checkout(path, real_base, real_archive, say=lambda text: None)
    return path


@pytest.fixture
def release_checkout(built_release: Path, tmp_path: Path) -> Path:
    """A copy of the built checkout that the test may change."""
    shutil.copytree(built_release, tmp_path / "DeepSpeed", symlinks=True)
    return tmp_path / "DeepSpeed"


@pytest.fixture
def quiet() -> Callable[[str], None]:
    """A ``say`` that prints nothing."""
    return lambda text: None
