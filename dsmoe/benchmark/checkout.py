"""The DeepSpeed checkout that a run uses: found, built when it is missing, and patched."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from dsmoe.errors import DsmoeError
from dsmoe.patchset.state import describe

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "DSMOE_DEEPSPEED"


class CheckoutFailed(DsmoeError):
    """The DeepSpeed checkout could not be built or patched; the applier has said why."""

    exit_code = 11


@dataclass(frozen=True)
class Trees:
    """The checkout and its identity: folder -> tree id, before and after patching."""

    path: Path
    base: dict[str, str] = field(default_factory=dict)
    result: dict[str, str] = field(default_factory=dict)


def location() -> Path:
    """``$DSMOE_DEEPSPEED``, else ``build/DeepSpeed`` beside the front doors."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser().absolute() if named else ROOT / "build" / "DeepSpeed"


def ensure(path: Path) -> None:
    """Build the checkout at ``path`` if nothing is there, and apply the series if it is not.

    Raises :class:`CheckoutFailed` where that cannot be done; the applier's exit code is in it.
    """
    command = [sys.executable, str(ROOT / "apply_patch.py"), str(path)]
    if not path.exists():
        command.append("--from-release")
    code = subprocess.call(command)
    if code:
        raise CheckoutFailed(
            f"the DeepSpeed checkout at {path} is not ready (apply_patch.py ended with {code}, "
            f"its reason is above); mend it, or name another with {VARIABLE}=PATH"
        )


def trees(path: Path) -> Trees:
    """The identity of the checkout at ``path``, for the record of a run."""
    state = describe(path)
    return Trees(path, state.trees, state.result)
