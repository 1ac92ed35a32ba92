"""Files that repeat a fact for a tool that cannot read it elsewhere say the same."""

from __future__ import annotations

import re

from support import ROOT

from dsmoe import __version__


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere() -> None:
    [cited] = re.findall(r"^version: (\S+)$", read("CITATION.cff"), re.M)
    assert cited == __version__
    assert 'version = { attr = "dsmoe.__version__" }' in read("pyproject.toml")


def test_the_supported_pythons_are_the_same_everywhere() -> None:
    classifiers = re.findall(r"Python :: 3\.(\d+)", read("pyproject.toml"))
    assert classifiers == [str(minor) for minor in range(8, 14)]
    [listed] = re.findall(r"^ +python: \[(.*)\]$", read(".github/workflows/tests.yml"), re.M)
    # 3.8 runs with an old torch alone: scripts/matrix.py
    assert re.findall(r"3\.(\d+)", listed) == classifiers[1:]
    assert "(3, 9) <= sys.version_info[:2] <= (3, 13)" in read("scripts/setup.sh")


def test_the_workflow_runs_what_ci_runs() -> None:
    """Every target that it and .ci/run name is in the Makefile."""
    workflow = read(".github/workflows/tests.yml")
    assert ".ci/run" in workflow
    named = re.findall(r"(?:run: |^)make ([a-z-]+)", workflow + read(".ci/run"), re.M)
    targets = re.findall(r"^([a-z-]+):", read("Makefile"), re.M)
    assert named and set(named) <= set(targets)
