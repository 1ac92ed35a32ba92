"""Where the project's data is, and where what it builds may go.

From a source tree the data is patch/, overlay/ and bases/ beside the package, and build/ takes
what is made. An installed dsmoe carries the data inside the package (``_data``, filled by
setup.py) and writes to the user's cache folder instead.
"""

from __future__ import annotations

import os
from pathlib import Path

from dsmoe.common.errors import EnvironmentProblem
from dsmoe.common.files import expanded

#: The base of a run where $DSMOE_BASE names no other.
DEFAULT_BASE = "bd3ebd"
BASE_VARIABLE = "DSMOE_BASE"
CHECKOUT_VARIABLE = "DSMOE_DEEPSPEED"
#: The launcher that starts a run, in a checkout.
LAUNCHER = Path("deepspeed/launcher/lean.py")
#: The variable of the artifact's own scripts.
ARTIFACT_VARIABLE = "DEEPSPEED_PATH"

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

    Raises:
        EnvironmentProblem: it would be in the home folder of a user who has none.
    """
    named = os.environ.get("DSMOE_HOME")
    if named:
        return expanded(named).absolute()
    if not installed():
        return project_root() / "build"
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache:
        return Path(cache) / "dsmoe"
    try:
        return Path.home() / ".cache" / "dsmoe"
    except RuntimeError:
        raise EnvironmentProblem(
            "found no home folder of this user (HOME is not set); expected one for checkouts and "
            "prepared text: name a folder for them, export DSMOE_HOME=/path/to/folder"
        ) from None


def another_place(path: Path) -> str:
    """What to do where ``path`` cannot be written: a work folder has a variable of its own."""
    work = work_folder()
    if path == work or work in path.parents:
        return "name another folder: export DSMOE_HOME=/path/to/folder"
    return "choose another path"


def base_name() -> str:
    """The base that is asked for: ``$DSMOE_BASE``, else bd3ebd."""
    return os.environ.get(BASE_VARIABLE) or DEFAULT_BASE


def checkout_folder() -> Path:
    """The DeepSpeed checkout that is used; see :func:`chosen_checkout`."""
    return chosen_checkout()[0]


def chosen_checkout(named: Path | None = None) -> tuple[Path, str]:
    """The DeepSpeed checkout that is used, and why that one.

    The first of: ``named`` (``--deepspeed``); ``$DSMOE_DEEPSPEED``; ``$DEEPSPEED_PATH``, as the
    artifact's script has it, where no base is named; ``build/DeepSpeed`` (``-NAME`` for base
    ``$DSMOE_BASE``).
    """
    if named is not None:
        return expanded(named).absolute(), "--deepspeed names it"
    variables = [CHECKOUT_VARIABLE]
    if not os.environ.get(BASE_VARIABLE):
        variables.append(ARTIFACT_VARIABLE)
    for variable in variables:
        value = os.environ.get(variable)
        if value:
            return expanded(value).absolute(), f"{variable} names it"
    name = base_name()
    folder = work_folder() / ("DeepSpeed" if name == DEFAULT_BASE else f"DeepSpeed-{name}")
    return folder, f"the project's own; --deepspeed or {CHECKOUT_VARIABLE} names another"
