"""The DeepSpeed checkout that a run uses: found, built when it is missing, and patched."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dsmoe.common.errors import DsmoeError
from dsmoe.common.places import CHECKOUT_VARIABLE, base_name, checkout_folder, import_root
from dsmoe.patchset.base import load_bases
from dsmoe.patchset.checkout.state import APPLIED, describe

location = checkout_folder
VARIABLE = CHECKOUT_VARIABLE


class CheckoutFailed(DsmoeError):
    """The DeepSpeed checkout could not be built or patched; the applier has said why."""

    exit_code = 11


@dataclass(frozen=True)
class Trees:
    """The checkout and its identity: the base, and folder -> tree id before and after patching."""

    path: Path
    deepspeed: str = ""
    base: dict[str, str] = field(default_factory=dict)
    result: dict[str, str] = field(default_factory=dict)


def ensure(path: Path) -> None:
    """Build the checkout at ``path`` if nothing is there, and apply the series if it is not.

    Raises :class:`CheckoutFailed` where that cannot be done; the applier's exit code is in it.
    """
    if path.exists() and describe(path).name == APPLIED:  # writes nothing: a read-only tree will do
        print(f"{path}: applied")
        return
    command = [sys.executable, "-m", "dsmoe", "apply-patch", str(path)]
    paths = [str(import_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
    if not path.exists():
        command += ["--from-release", "--base", base_name()]
    code = subprocess.call(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    if code:
        raise CheckoutFailed(
            f"the DeepSpeed checkout at {path} is not ready (apply_patch.py ended with {code}, "
            f"its reason is above); mend it, or name another with {VARIABLE}=PATH"
        )


def trees(path: Path) -> Trees:
    """The identity of the checkout at ``path``, for the record of a run."""
    state = describe(path)
    versions = {base.name: base.version for base in load_bases()}
    return Trees(
        path, f"{versions.get(state.base, 'unknown')} ({state.base})", state.trees, state.result
    )
