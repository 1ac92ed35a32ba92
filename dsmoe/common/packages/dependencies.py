"""What the project depends on, read from its only list: pyproject.toml, or the installed metadata.

A source tree has pyproject.toml; an installed dsmoe has the same list in its package metadata
(``importlib.metadata.requires``). scripts/setup.sh calls this before anything is installed, so it
needs the standard library alone, also on Python 3.8, which has no ``tomllib``.

Of PEP 508 it reads what that list uses: a name, extras, one ``==`` or ``>=`` with a release, and a
marker that compares ``python_version``. Anything else is a ValueError, never a guess.
"""

from __future__ import annotations

import ast
import re
import sys
from typing import NamedTuple

from dsmoe.common import places
from dsmoe.common.errors import EnvironmentProblem

#: The extra of what every installation gets.
ALWAYS = ""

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)\s*(?:\[(?P<extras>[^\]]*)\])?\s*"
    r"\(?(?:(?P<comparison>==|>=)\s*(?P<release>[0-9][\w.+!-]*))?\)?\s*(?:;\s*(?P<marker>.+))?"
)
_PYTHON = re.compile(r"python_version\s*(<|>=)\s*['\"](\d+)\.(\d+)['\"]")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


class Requirement(NamedTuple):
    """One line of the list: ``name[extras]``, ``comparison`` and ``release`` ("" for any)."""

    name: str
    extras: str = ""
    comparison: str = ""
    release: str = ""
    marker: str = ""

    def __str__(self) -> str:
        extras = f"[{self.extras}]" if self.extras else ""
        marker = f"; {self.marker}" if self.marker else ""
        return f"{self.name}{extras}{self.comparison}{self.release}{marker}"

    def applies(self, python: tuple[int, int] | None = None) -> bool:
        """Whether ``python`` (default: the running one) needs it."""
        if not self.marker:
            return True
        found = _PYTHON.fullmatch(self.marker)
        assert found is not None  # parse() made sure
        bound = (int(found[2]), int(found[3]))
        here = python or sys.version_info[:2]
        return here < bound if found[1] == "<" else here >= bound

    def allows(self, release: str) -> bool:
        """Whether the installed ``release`` will do."""
        if self.comparison == "==":
            # a local label ("2.13.0+cpu") says how it was built, not which release it is
            return self.release in (release, release.split("+")[0])
        return not self.release or _numbers(release) >= _numbers(self.release)


def parse(line: str) -> Requirement:
    """One requirement. Raises ValueError for what this module does not read."""
    found = _REQUIREMENT.fullmatch(line.strip())
    marker = (found["marker"] or "").strip() if found else ""
    if found is None or (marker and not _PYTHON.fullmatch(marker)):
        raise ValueError(
            f"requirement {line!r}: expected NAME[EXTRAS], == or >= with a release, and a marker "
            "such as python_version >= '3.10'"
        )
    extras, comparison, release = (
        found[part] or "" for part in ("extras", "comparison", "release")
    )
    return Requirement(found["name"], extras, comparison, release, marker)


def requirements(*extras: str) -> list[Requirement]:
    """The requirements of ``extras``, in the list's order, for every Python.

    ``requirements()`` has those of every installation. Raises EnvironmentProblem where the list
    cannot be read or has no such extra.
    """
    every = _from_metadata() if places.installed() else _from_source_tree()
    unknown = [name for name in extras if name not in every]
    if unknown:
        names = ", ".join(name for name in every if name)
        raise EnvironmentProblem(f"dsmoe has no extra {unknown[0]}; expected one of {names}")
    return [item for name in (extras or (ALWAYS,)) for item in every[name]]


def missing(wanted: list[Requirement]) -> list[Requirement]:
    """Those of ``wanted`` that this Python needs and has not, or not in a release that will do."""
    return [item for item in wanted if item.applies() and not _is_here(item)]


def how_to_install(extra: str) -> str:
    """The command that installs what ``extra`` lists, for a message."""
    if places.installed():
        return f"{sys.executable} -m pip install 'dsmoe[{extra}]'"
    return f"{places.project_root() / 'scripts' / 'setup.sh'}{' dev' if extra == 'dev' else ''}"


def _is_here(item: Requirement) -> bool:
    found = version_of(item.name)
    return found is not None and item.allows(found)


def version_of(package: str) -> str | None:
    """The release of ``package`` that is installed here; None where it is missing."""
    from importlib import metadata  # which imports the standard library's reader of mails

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(release: str) -> tuple[int, ...]:
    """(3, 1, 40) of 3.1.40."""
    return tuple(int(part) for part in re.findall(r"\d+", release.split("+")[0])[:3])


def _from_source_tree() -> dict[str, list[Requirement]]:
    """The two tables of pyproject.toml.

    TOML writes a list of strings as Python does, comments included; that is all that is read here.
    """
    file = places.project_root() / "pyproject.toml"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(
            f"{file}: found that it cannot be read ({error.strerror}); expected the list of "
            "dependencies: get it back from the repository"
        ) from error
    lists = re.compile(r"^([\w-]+) = (\[(?:[^\"\[\]]|\"[^\"]*\")*\])", re.M)
    project = _table(text, "project")
    found = {ALWAYS: dict(lists.findall(project))["dependencies"]}
    found.update(lists.findall(_table(text, "project.optional-dependencies")))
    return {name: [parse(item) for item in ast.literal_eval(v)] for name, v in found.items()}


def _table(text: str, name: str) -> str:
    """The body of the TOML table ``[name]``."""
    return re.split(r"^\[", text.split(f"\n[{name}]\n", 1)[1], maxsplit=1, flags=re.M)[0]


def _from_metadata() -> dict[str, list[Requirement]]:
    """The same from the metadata that the wheel carries."""
    from importlib import metadata

    try:
        message = metadata.metadata("dsmoe")
        lines = metadata.requires("dsmoe") or []
    except metadata.PackageNotFoundError as error:
        raise EnvironmentProblem(
            "dsmoe is installed without its metadata; expected dsmoe-*.dist-info beside it: "
            "install it again with pip"
        ) from error
    found: dict[str, list[Requirement]] = {ALWAYS: []}
    found.update({name: [] for name in message.get_all("Provides-Extra") or []})
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = _EXTRA.search(marker)
        parts = [part.strip(" ()") for part in _EXTRA.sub("", marker).split(" and ")]
        rest = " and ".join(filter(None, parts))
        found[extra[1] if extra else ALWAYS].append(
            parse(f"{requirement}; {rest}" if rest else requirement)
        )
    return found
