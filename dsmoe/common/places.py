"""Where the project's data is, and where what it builds may go.

From a source tree the data is patch/, overlay/ and bases/ beside the package, and build/ takes
what is made. An installed dsmoe carries the data inside the package (``_data``, filled by
setup.py) and writes to the user's cache folder instead.
"""

from __future__ import annotations

import os
from pathlib import Path

#: The base of a run where $DSMOE_BASE names no other.
DEFAULT_BASE = "bd3ebd"
BASE_VARIABLE = "DSMOE_BASE"
CHECKOUT_VARIABLE = "DSMOE_DEEPSPEED"

_PACKAGE = Path(__file__).resolve().parents[1]
_DATA = _PACKAGE / "_data"


def installed() -> bool:
    """Whether this is an installed package, not a source tree."""
    return (_DATA / "bases").is_dir()


def project_root() -> Path:
    """The folder that holds patch/, overlay/ and bases/."""
    return _DATA if installed() else _PACKAGE.parent


def import_root() -> Path:
    """The folder to put into PYTHONPATH so that another process imports this very package."""
    return _PACKAGE.parent


def work_folder() -> Path:
    """Where checkouts, archives and prepared text are kept.

    ``$DSMOE_HOME`` if set; build/ of a source tree; ``$XDG_CACHE_HOME/dsmoe`` (~/.cache/dsmoe).
    """
    named = os.environ.get("DSMOE_HOME")
    if named:
        return Path(named).expanduser().absolute()
    if not installed():
        return project_root() / "build"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "dsmoe"


def base_name() -> str:
    """The base that is asked for: ``$DSMOE_BASE``, else bd3ebd."""
    return os.environ.get(BASE_VARIABLE) or DEFAULT_BASE


def checkout_folder() -> Path:
    """``$DSMOE_DEEPSPEED``, else ``build/DeepSpeed`` (of base ``$DSMOE_BASE``: ``-NAME``)."""
    named = os.environ.get(CHECKOUT_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    name = base_name()
    return work_folder() / ("DeepSpeed" if name == DEFAULT_BASE else f"DeepSpeed-{name}")
