"""Fetching the release's archive leaves the process as it was, and says what to do without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, hanging

from dsmoe.common.errors import ArchiveProblem, EnvironmentProblem
from dsmoe.patchset.base import load_bases
from dsmoe.patchset.sources import archive, release


def test_asking_for_pip_leaves_setuptools_importable() -> None:
    """The tests build the checkout and import DeepSpeed, with its setuptools, in one process."""
    code = (
        "from dsmoe.patchset.sources.archive import importable\n"
        "assert importable('pip') and not importable('no_such_package')\n"
        "import setuptools, sys\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_pip_that_cannot_download_is_one_line_with_its_words_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = subprocess.CompletedProcess(
        [], 1, b"Looking in indexes\nERROR: No matching distribution\n"
    )
    monkeypatch.setattr(archive, "importable", lambda name: True)
    monkeypatch.setattr(archive.subprocess, "run", lambda *args, **more: said)
    base = load_bases()[0]
    with pytest.raises(ArchiveProblem) as caught:
        archive.fetch_archive(base, tmp_path, lambda text: None)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"pip could not download deepspeed=={base.version}")
    # a command that trains has no --archive: the place where a copy is found is named
    assert f"a copy of it as {tmp_path / base.release['archive']}: put one there" in line
    assert caught.value.details == ["Looking in indexes", "ERROR: No matching distribution"]


@pytest.mark.parametrize("name", ["/proc/none", "link/none"])
def test_a_place_that_takes_no_checkout_is_named_as_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("/proc")
    monkeypatch.setattr(release, "check_archive", lambda base, source: None)
    with pytest.raises(EnvironmentProblem, match=f"^{name}: no DeepSpeed checkout can be built"):
        release.build_checkout(Path(name), load_bases()[0], tmp_path, lambda text: None)


def test_a_download_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging.package(tmp_path / "first", "pip", monkeypatch)
    monkeypatch.setattr(archive, "PIP_SECONDS", 0.5)
    monkeypatch.setattr(archive, "importable", lambda name: True)
    with pytest.raises(ArchiveProblem, match=r"pip did not download deepspeed==\S+ within 0\.5 s"):
        archive.fetch_archive(load_bases()[0], tmp_path / "cache", lambda text: None)
    assert not list((tmp_path / "cache").glob("*"))
