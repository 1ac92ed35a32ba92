"""Bases as data: each base is a folder in bases/, read from its ``base.json``.

A base names the commits and the tree ids by which a checkout is recognised, the series and the
overlay folders that belong to it, and how its tree comes back from the release archive.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Iterable

from dsmoe.common.errors import UsageError
from dsmoe.common.places import project_root
from dsmoe.patchset.inputs import is_plain_path, read_input


@dataclass(frozen=True)
class Base:
    """One base. ``commits`` maps full commit ids to the kind of checkout that has them.

    ``files`` names the output of ``git ls-tree -r`` for the folders that pip installs.
    """

    name: str
    folder: Path
    version: str
    commit: str
    commits: dict[str, str]
    trees: dict[str, str]
    series: Path
    overlays: tuple[Path, ...]
    release: dict[str, Any] = field(default_factory=dict)
    upstream: str = ""
    files: Path | None = None

    def moved(self, place: Callable[[Path], Path]) -> Base:
        """The same base with its folder, series and overlays at ``place(path)``."""
        overlays = tuple(place(path) for path in self.overlays)
        series = place(self.series.parent) / self.series.name
        return replace(self, folder=place(self.folder), series=series, overlays=overlays)

    @property
    def result_file(self) -> Path:
        """Where the locked result of this base's series is kept."""
        return self.folder / "result.json"


def load_base(folder: Path) -> Base:
    """Read ``folder/base.json``; ``UsageError`` when it is missing or lacks a field."""
    path = folder / "base.json"
    try:
        data = json.loads(read_input(path))
        _check(data)
        return Base(
            name=data["name"],
            folder=folder,
            version=data["version"],
            commit=data["commit"],
            commits={item["id"]: item["label"] for item in data["commits"]},
            trees=dict(data["trees"]),
            series=(folder / data["series"]).resolve(),
            overlays=tuple((folder / item).resolve() for item in data["overlays"]),
            release=data.get("release", {}),
            upstream=data.get("upstream", ""),
            files=folder / data["files"] if "files" in data else None,
        )
    except OSError as error:
        raise UsageError(f"no base at {folder}: {error.strerror}: {path}") from None
    except KeyError as error:
        raise UsageError(f"{path} is not a usable base description: no {error}") from None
    except (ValueError, TypeError, RecursionError, RuntimeError) as error:
        words = str(error)[:200]
        raise UsageError(f"{path} is not a usable base description: {words}") from None


_RELEASE = ("package", "version", "archive", "sha256", "root")
_COMMIT = ("name", "email", "date", "message")
_STEPS = {
    "remove": ("path",),
    "link": ("path", "target"),
    "index-only": ("path", "mode", "blob"),
}


def _check(data: Any) -> None:
    """The types of all fields; ``ValueError`` or ``KeyError`` names the field."""
    if not isinstance(data, dict):
        raise ValueError("expected a JSON object")
    _texts(data, ("name", "version", "commit", "series"), "")
    _texts(data, [key for key in ("upstream", "files") if key in data], "")
    _list(data, "commits")
    for item in data["commits"]:
        _texts(item, ("id", "label"), "commits: ")
    _texts(data["trees"], data["trees"] if isinstance(data["trees"], dict) else (), "trees: ")
    for item in _list(data, "overlays"):
        if not isinstance(item, str):
            raise ValueError("overlays: expected paths")
    if data.get("release"):
        release = data["release"]
        _texts(release, _RELEASE, "release: ")
        _texts(release["commit"], _COMMIT, "release: commit: ")
        for step in _list(release, "steps"):
            _texts(step, ("do",), "release: steps: ")
            if step["do"] not in _STEPS:
                raise ValueError(f"release: unknown step {step['do']!r}")
            _texts(step, _STEPS[step["do"]], "release: steps: ")
            if not is_plain_path(step["path"]):
                raise ValueError(f"release: steps: {step['path']!r} is outside of the checkout")


def _texts(data: Any, keys: Iterable[str], where: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{where}expected a JSON object")
    for key in keys:
        if not isinstance(data[key], str) or "\0" in data[key]:
            raise ValueError(f"{where}{key} is not a text")
        data[key].encode("utf-8")  # a lone surrogate is not text


def _list(data: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(data[key], list):
        raise ValueError(f"{key} is not a list")
    found: list[Any] = data[key]
    return found


def load_bases(folder: Path | None = None, name: str | None = None) -> list[Base]:
    """All bases of ``folder`` (default: the project's bases/), or the one called ``name``."""
    root = folder or project_root() / "bases"
    known = sorted(path.parent for path in root.glob("*/base.json"))
    if name is not None:
        if root / name not in known:
            names = ", ".join(path.name for path in known) or "none"
            raise UsageError(f"no base is called {name!r} in {root}; there are: {names}")
        known = [root / name]
    if not known:
        raise UsageError(f"no base in {root}: expected a folder with a base.json for each base")
    return [load_base(path) for path in known]
