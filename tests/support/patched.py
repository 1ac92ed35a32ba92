"""The patched DeepSpeed that the tests run: $DSMOE_DEEPSPEED, else build/DeepSpeed.

With DSMOE_BASE=0.5.4 that is build/DeepSpeed-0.5.4; so for every base in bases/. A checkout with
local edits is tested as it is, so that a change can be tried before it is exported; one that holds
an older series is brought up to date.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from dsmoe.benchmark.run import patched_deepspeed
from dsmoe.common import places
from dsmoe.common.errors import DsmoeError
from dsmoe.patchset.base import Base, load_bases
from dsmoe.patchset.checkout import state

LOCK_SECONDS = 600


@functools.lru_cache(maxsize=None)
def importable() -> Path:
    """The checkout, built and patched if need be, in front of every other ``deepspeed``.

    Here and in every process that a test starts. Ends the test run where it cannot be had.
    """
    place = places.checkout_folder()
    if not os.environ.get(places.CHECKOUT_VARIABLE):
        place.parent.mkdir(parents=True, exist_ok=True)
        # pytest-xdist has several processes that may ask for it at once
        with FileLock(str(place.parent / f".{place.name}.tests.lock"), timeout=LOCK_SECONDS):
            _bring_up_to_date(place)
    sys.path.insert(0, str(place))
    others = [part for part in [os.environ.get("PYTHONPATH")] if part]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(place), *others])
    return place


def _bring_up_to_date(place: Path) -> None:
    found = state.describe(place).name if place.exists() else "missing"
    if found in (state.APPLIED, state.APPLIED_EDITED):
        return
    try:
        patched_deepspeed.ensure(place)
    except DsmoeError as error:
        pytest.exit(f"the tests need a patched DeepSpeed: {error}", returncode=4)


@functools.lru_cache(maxsize=None)
def base() -> Base:
    """The base of that DeepSpeed."""
    name = os.environ.get(places.BASE_VARIABLE)
    if not name and os.environ.get(places.CHECKOUT_VARIABLE):
        name = state.describe(places.checkout_folder()).base
    return load_bases(name=name or places.base_name())[0]
