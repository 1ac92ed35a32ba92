"""The DeepSpeed that a run imports: built where it is missing, and patched."""

from __future__ import annotations

import contextlib
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from dsmoe.common.files import write_atomically
from dsmoe.common.output import line_printer
from dsmoe.common.places import base_name, project_root
from dsmoe.patchset.base import load_bases
from dsmoe.patchset.checkout import actions
from dsmoe.patchset.checkout.situation import APPLIED
from dsmoe.patchset.checkout.state import describe
from dsmoe.patchset.sources.release import build_checkout


@dataclass(frozen=True)
class Trees:
    """The checkout and its identity: the base, and folder -> tree id before and after patching."""

    path: Path
    deepspeed: str = ""
    base: dict[str, str] = field(default_factory=dict)
    result: dict[str, str] = field(default_factory=dict)


def ensure(path: Path, say: Callable[[str], None] = line_printer()) -> None:
    """Build the checkout at ``path`` if nothing is there, and apply the series if it is not.

    A checkout with the series applied is not written to, so that a read-only one will do. Raises
    what apply raises.
    """
    if not path.exists():
        bases = load_bases(name=base_name())
        build_checkout(path, bases[0], None, say)
    elif describe(path).name == APPLIED:
        say(f"{path}: applied")
        return
    else:
        bases = load_bases()
    say(actions.apply(path, bases, say).message)


def let_import(path: Path) -> None:
    """Let ``import deepspeed`` find the project's own checkout in the project's own environment.

    As in the artifact's third step. For other checkouts and environments that is their owner's to
    do. A run finds its DeepSpeed without this, so a failure to write is no reason to stop.
    """
    root = project_root()
    if Path(sys.prefix) == root / ".venv" and path.resolve() == root / "build" / "DeepSpeed":
        place = Path(sysconfig.get_paths()["purelib"]) / "dsmoe-deepspeed.pth"
        with contextlib.suppress(OSError):
            write_atomically(place, f"{path.resolve()}\n".encode())


def trees(path: Path) -> Trees:
    """The identity of the checkout at ``path``, for the record of a run."""
    state = describe(path)
    versions = {base.name: base.version for base in load_bases()}
    return Trees(
        path, f"{versions.get(state.base, 'unknown')} ({state.base})", state.trees, state.result
    )
