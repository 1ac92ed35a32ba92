"""Bases as data: one folder in bases/ a base, read from its ``base.json``.

A base names the commits and the tree ids by which a checkout is recognised, the series and the
overlay folders that belong to it, and how its tree comes back from the release archive.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsmoe.common.errors import UsageError
from dsmoe.common.places import project_root


@dataclass(frozen=True)
class Base:
    """One base. ``commits`` maps full commit ids to the kind of checkout that has them.

    ``files`` is the output of ``git ls-tree -r`` for the folders that pip installs.
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

    @property
    def result_file(self) -> Path:
        """Where the locked result of this base's series is kept."""
        return self.folder / "result.json"


def load_base(folder: Path) -> Base:
    """Read ``folder/base.json``; ``UsageError`` when it is missing or lacks a field."""
    path = folder / "base.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
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
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a usable base description: {error!r}") from None


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
        raise UsageError(f"no base in {root}: expected one folder with a base.json a base")
    return [load_base(path) for path in known]
