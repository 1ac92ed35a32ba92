"""Take each patch out of the checkout and see the tests that its header names fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.without_patch import copied, take_out

from dsmoe.common.places import base_name
from dsmoe.patchset.authoring.lint import read_fields
from dsmoe.patchset.base import load_bases
from dsmoe.patchset.patch_file import Patch
from dsmoe.patchset.series import load_series

SERIES = load_series(load_bases(name=base_name())[0])

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("patch", SERIES.patches, ids=lambda patch: patch.path.name)
def test_its_tests_fail_without_it(patch: Patch, checkout: Path, tmp_path: Path) -> None:
    tree = copied(checkout, tmp_path)
    take_out(tree, patch, SERIES)
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
