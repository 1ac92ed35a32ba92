"""Every test sees the patched DeepSpeed: $DSMOE_DEEPSPEED, else build/DeepSpeed, made if missing.

With DSMOE_BASE=0.5.4 that is build/DeepSpeed-0.5.4; so for every base in bases/.

A checkout with local edits is tested as it is, so that a change can be tried before it is
exported; one that holds an older series is brought up to date.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dsmoe.benchmark.run import patched_deepspeed  # noqa: E402
from dsmoe.common import places  # noqa: E402
from dsmoe.common.errors import DsmoeError  # noqa: E402
from dsmoe.patchset.base import Base, load_bases  # noqa: E402
from dsmoe.patchset.checkout import state  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    place = places.checkout_folder()
    if not os.environ.get(places.CHECKOUT_VARIABLE):
        found = state.describe(place).name if place.exists() else "missing"
        if found not in (state.APPLIED, state.APPLIED_EDITED):
            try:
                patched_deepspeed.ensure(place)
            except DsmoeError as error:
                raise pytest.UsageError(str(error)) from None
    # In front of a deepspeed that may be installed, here and in every process a test starts.
    sys.path.insert(0, str(place))
    paths = [
        str(place),
        str(ROOT),
        str(ROOT / "tests"),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The patched DeepSpeed that the tests run."""
    return places.checkout_folder()


def _base() -> Base:
    name = os.environ.get(places.BASE_VARIABLE)
    if not name and os.environ.get(places.CHECKOUT_VARIABLE):
        name = state.describe(places.checkout_folder()).base
    return load_bases(name=name or places.base_name())[0]


@pytest.fixture(scope="session")
def base() -> Base:
    """The base of that DeepSpeed."""
    return _base()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = _base().name
    for item in items:
        for mark in item.iter_markers("not_on"):
            if mark.args[0] == here:
                item.add_marker(pytest.mark.skip(reason=f"base {here}: {mark.kwargs['reason']}"))


@pytest.fixture(scope="session")
def gpus() -> int:
    """CUDA devices here; counted in a process of its own, so that no test inherits CUDA."""
    code = "import torch; print(torch.cuda.device_count())"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout or 0)
